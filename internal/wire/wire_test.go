package wire_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"cryo/internal/image"
	"cryo/internal/wire"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// each runs a test on every type of message that an image has, and on some that this package leaves to package proto.
func each(t *testing.T, test func(t *testing.T, r *rand.Rand, fresh func() proto.Message)) {
	fresh := map[protoreflect.FullName]func() proto.Message{}
	add := func(make func() proto.Message) { fresh[make().ProtoReflect().Descriptor().FullName()] = make }
	for _, typ := range image.Types() {
		add(typ.New)
		if typ.Head != nil {
			add(typ.Head)
		}
	}
	add(func() proto.Message { return &descriptorpb.FileDescriptorProto{} }) // extensions, within
	for name, fresh := range fresh {
		t.Run(string(name), func(t *testing.T) { test(t, rand.New(rand.NewPCG(1, 2)), fresh) })
	}
}

// fill sets fields at random: required ones always, unless holes is set.
func fill(r *rand.Rand, m protoreflect.Message, holes bool, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		required := f.Cardinality() == protoreflect.Required
		switch {
		case required && holes && r.IntN(20) == 0:
		case !required && (r.IntN(2) == 0 || depth == 0 && f.Kind() == protoreflect.MessageKind):
		case f.IsList():
			l := m.Mutable(f).List()
			for range r.IntN(4) {
				if f.Kind() == protoreflect.MessageKind {
					fill(r, l.AppendMutable().Message(), holes, depth-1)
				} else {
					l.Append(scalar(r, f))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			fill(r, m.Mutable(f).Message(), holes, depth-1)
		default:
			m.Set(f, scalar(r, f))
		}
	}
	if r.IntN(4) == 0 {
		b := protowire.AppendTag(nil, 99_999, protowire.BytesType)
		m.SetUnknown(protowire.AppendString(b, "unheard of"))
	}
}

// number is any, often a small one.
func number(r *rand.Rand) uint64 { return r.Uint64() >> r.IntN(64) }

func scalar(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	v := number(r)
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(v&1 == 1)
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(r.IntN(values.Len())).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(v))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(v))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(v))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(v)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(make([]byte, r.IntN(200))))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(make([]byte, r.IntN(200)))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(v))
	}
	panic(f.Kind().String())
}

// TestSameBytes compares what is encoded, and that what lacks something is refused.
func TestSameBytes(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand, fresh func() proto.Message) {
		for i := range 200 {
			m := fresh()
			fill(r, m.ProtoReflect(), i%2 == 0, 3)
			want, refused := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			got, err := wire.Append(nil, m)
			if (err != nil) != (refused != nil) {
				t.Fatalf("%v; package proto: %v\n%v", err, refused, m)
			}
			if err == nil && !bytes.Equal(got, want) {
				t.Fatalf("got %x, want %x of\n%v", got, want, m)
			}
		}
	})
}

// TestSameMessage decodes bytes that are right, and many that are not.
func TestSameMessage(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand, fresh func() proto.Message) {
		for i := range 100 {
			m := fresh()
			fill(r, m.ProtoReflect(), i%2 == 0, 3)
			b, _ := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
			same(t, b, fresh)
			for range 50 {
				same(t, alter(r, b), fresh)
			}
		}
	})
}

// same decodes bytes by both packages.
func same(t *testing.T, b []byte, fresh func() proto.Message) {
	t.Helper()
	want, got := fresh(), fresh()
	refused := proto.UnmarshalOptions{RecursionLimit: 32}.Unmarshal(b, want)
	err := wire.Unmarshal(b, got)
	if (err != nil) != (refused != nil) {
		t.Fatalf("%v; package proto: %v\n%x", err, refused, b)
	}
	if err == nil && !proto.Equal(want, got) {
		t.Fatalf("got %v, want %v of %x", got, want, b)
	}
	if err == nil && !bytes.Equal(wire.Unknown(got), want.ProtoReflect().GetUnknown()) {
		t.Fatalf("unknown fields %x, want %x", wire.Unknown(got), want.ProtoReflect().GetUnknown())
	}
}

// alter damages bytes: it changes some, cuts the end off, repeats a piece, or puts one in.
func alter(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			return b
		}
		i, j := r.IntN(len(b)), r.IntN(len(b))
		switch r.IntN(4) {
		case 0:
			b[i] = byte(r.Uint32())
		case 1:
			b[i] ^= 1 << r.IntN(8)
		case 2:
			b = b[:i]
		case 3:
			b = append(b[:i:i], append(bytes.Clone(b[min(i, j):max(i, j)]), b[i:]...)...)
		}
	}
	return b
}

// FuzzUnmarshal holds the two packages against each other: the first byte says what type.
func FuzzUnmarshal(f *testing.F) {
	types := image.Types()
	for i, typ := range types {
		m := typ.New()
		fill(rand.New(rand.NewPCG(uint64(i), 0)), m.ProtoReflect(), false, 3)
		b, _ := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		f.Add(byte(i), b)
	}
	f.Fuzz(func(t *testing.T, i byte, b []byte) { same(t, b, types[int(i)%len(types)].New) })
}

// TestAllKnown says which messages of images are left to package proto: none.
func TestAllKnown(t *testing.T) {
	for _, typ := range image.Types() {
		if m := typ.New(); wire.Foreign(m) {
			t.Errorf("%T", m)
		}
	}
}
