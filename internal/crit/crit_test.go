package crit_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/crit"
	"cryo/internal/image"

	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const golden = "../../testdata/images"

func decode(b []byte, opt crit.Options) (string, error) {
	dec, err := image.DetectDecoder(bytes.NewReader(b), "test.img")
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := crit.Decode(&out, dec, opt); err != nil {
		return "", err
	}
	return out.String(), nil
}

// What criu 4.2's crit made of the golden images: the same text, and from the text the same bytes.
func TestLikeCrit(t *testing.T) {
	texts, err := filepath.Glob("testdata/*.json")
	if err != nil || len(texts) == 0 {
		t.Fatalf("no texts: %v", err)
	}
	for _, text := range texts {
		var opt crit.Options
		name, nopl := strings.CutSuffix(strings.TrimSuffix(filepath.Base(text), ".json"), ".nopl")
		name, opt.Pretty = strings.CutSuffix(name, ".pretty")
		opt.Pretty, opt.NoPayload = opt.Pretty || nopl, nopl
		found, _ := filepath.Glob(filepath.Join(golden, "*", name))
		want, err := os.ReadFile(text)
		if err != nil {
			t.Fatal(err)
		}
		// inventory.img is in both sets.
		matched := false
		for _, f := range found {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := decode(b, opt)
			if err != nil {
				t.Error(err)
			}
			if got+"\n" != string(want) {
				continue
			}
			matched = true
			if nopl {
				continue
			}
			var back bytes.Buffer
			if err := crit.Encode(&back, strings.NewReader(got)); err != nil {
				t.Errorf("%s: %v", text, err)
			} else if !bytes.Equal(back.Bytes(), b) {
				t.Errorf("%s: encoding gives other bytes than %s has", text, f)
			}
		}
		if !matched {
			t.Errorf("%s: none of %v decodes to it", text, found)
		}
	}
}

func TestExploreLikeCrit(t *testing.T) {
	src, err := image.OpenDir(filepath.Join(golden, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for name, view := range crit.Explorers {
		want, err := os.ReadFile("testdata/" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := view(&got, src); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got.String() != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got.String(), want)
		}
	}
}

// populate sets about half of the fields of m, and all that are required, to anything.
func populate(r *rand.Rand, m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		if f.Cardinality() != protoreflect.Required && (r.IntN(2) == 0 || depth > 3) {
			continue
		}
		switch {
		case f.IsList():
			l := m.Mutable(f).List()
			for range 1 + r.IntN(5) {
				if f.Kind() == protoreflect.MessageKind {
					populate(r, l.AppendMutable().Message(), depth+1)
				} else {
					l.Append(anything(r, f))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			populate(r, m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, anything(r, f))
		}
	}
}

func anything(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	n := r.Uint64() >> r.IntN(64)
	if r.IntN(8) == 0 {
		n = math.MaxUint64
	}
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n&1 == 1)
	case protoreflect.EnumKind:
		v := f.Enum().Values()
		return protoreflect.ValueOfEnum(v.Get(r.IntN(v.Len())).Number())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(noise(r)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(noise(r))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	}
	return protoreflect.ValueOfUint64(n)
}

// noise is text with all that is hard to quote, bytes that are no UTF-8 among it.
func noise(r *rand.Rand) []byte {
	parts := []string{"a", "/tmp/x", "\x00", "\xff\xfe", "é", "日本", "🦀", "\"", "\\", "\\u0041", "\n", "\r\n", "\r", " ", "\t", ".", "=", "=41", "_", "\x7f", "\u007f\u0080", "\U0010fffd", "\xed\xb2\x80", strings.Repeat("long", 30)}
	var b []byte
	for range r.IntN(8) {
		b = append(b, parts[r.IntN(len(parts))]...)
	}
	return b
}

// Whatever is in an image of whatever kind: decoded and encoded again it is the same bytes, pretty or not.
func TestRoundTrip(t *testing.T) {
	for _, ty := range image.Types() {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 7))
			img, err := makeImage(r, ty)
			if err != nil {
				t.Fatalf("%s: %v", ty.Pattern, err)
			}
			for _, pretty := range []bool{false, true} {
				text, err := decode(img, crit.Options{Pretty: pretty})
				if err != nil {
					t.Errorf("%s, seed %d: %v", ty.Pattern, seed, err)
					continue
				}
				var back bytes.Buffer
				if err := crit.Encode(&back, strings.NewReader(text)); err != nil {
					t.Errorf("%s, seed %d: %v\n%s", ty.Pattern, seed, err, text)
				} else if !bytes.Equal(back.Bytes(), img) {
					t.Errorf("%s, seed %d, pretty %v: %d bytes became %d others\n%s", ty.Pattern, seed, pretty, len(img), back.Len(), text)
				}
			}
		}
	}
}

// makeImage makes an image of three entries with their payloads.
func makeImage(r *rand.Rand, ty *image.Type) ([]byte, error) {
	var out bytes.Buffer
	enc := image.NewEncoder(&out, ty.Pattern, ty)
	for n := range 3 {
		m := ty.New()
		if n == 0 && ty.Head != nil {
			m = ty.Head()
		}
		populate(r, m.ProtoReflect(), 0)
		if r.IntN(3) == 0 {
			m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 3000, protowire.VarintType), r.Uint64()))
		}
		limitPayload(r, m.ProtoReflect())
		if err := enc.Entry(m); err != nil {
			return nil, err
		}
		size := int64(0)
		if ty.Payload != nil {
			size = ty.Payload(m)
		}
		if size == image.EndOfFile {
			err := enc.Payload(bytes.NewReader(make([]byte, r.IntN(200))))
			if err == nil {
				err = enc.Flush()
			}
			return out.Bytes(), err
		}
		if ty.Payload != nil {
			// Padding is zeros.
			data := min(size, unpadded(m))
			if err := enc.Payload(io.MultiReader(bytes.NewReader(bytes.Repeat([]byte{'p'}, int(data))), bytes.NewReader(make([]byte, size-data)))); err != nil {
				return nil, err
			}
		}
		if ty.Messages != nil {
			for range ty.Messages(m) {
				text := noise(r)
				msg := &ipc_msg.IpcMsg{Mtype: proto.Uint64(r.Uint64()), Msize: proto.Uint32(uint32(len(text)))}
				if err := enc.Message(msg, text); err != nil {
					return nil, err
				}
			}
		}
	}
	err := enc.Flush()
	return out.Bytes(), err
}

// limitPayload makes the fields that tell of a payload small.
func limitPayload(r *rand.Rand, m protoreflect.Message) {
	for _, name := range []string{"bytes", "length", "inq_len", "outq_len", "keys_bytes", "values_bytes", "nsems", "size", "len", "qnum"} {
		f := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if f == nil || f.IsList() || !m.Has(f) {
			continue
		}
		switch f.Kind() {
		case protoreflect.Uint32Kind:
			m.Set(f, protoreflect.ValueOfUint32(uint32(r.IntN(150))))
		case protoreflect.Uint64Kind:
			m.Set(f, protoreflect.ValueOfUint64(uint64(r.IntN(150))))
		}
	}
}

// unpadded is how much of a payload is data, where that can be less than all.
func unpadded(m proto.Message) int64 {
	switch e := m.(type) {
	case interface{ GetNsems() uint32 }:
		return 2 * int64(e.GetNsems())
	case interface {
		GetInPagemaps() bool
		GetSize() uint64
	}:
		return int64(e.GetSize())
	}
	return math.MaxInt64
}

func TestInfo(t *testing.T) {
	for name, want := range map[string]string{"pagemap-6306.img": "9", "pstree.img": "2", "pipes-data.img": "1"} {
		b, err := os.ReadFile(filepath.Join(golden, "golden", name))
		if err != nil {
			t.Fatal(err)
		}
		dec, err := image.DetectDecoder(bytes.NewReader(b), name)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := crit.Info(&out, dec); err != nil {
			t.Error(err)
		}
		want := fmt.Sprintf("{\n    \"magic\": %q,\n    \"count\": %s\n}\n", dec.Type().Name, want)
		if out.String() != want {
			t.Errorf("%s: %s want %s", name, out.String(), want)
		}
	}
}

func TestEncodeMistakes(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{"", "cannot read JSON"},
		{"\x10\x31", "cannot read JSON"},
		{`{}`, "entries"},
		{`{"magic": "NONE", "entries": []}`, "NONE"},
		{`{"entries": [], "magic": "PSTREE"}`, "before"},
		{`{"magic": "PSTREE", "entries": [{"pid": 1}]}`, "required"},
		{`{"magic": "PSTREE", "entries": [{"pid": "x", "ppid": 1, "pgid": 1, "sid": 1}]}`, "pid"},
		{`{"magic": "PSTREE", "entries": [{"pid": 4294967296, "ppid": 1, "pgid": 1, "sid": 1}]}`, "does not fit"},
		{`{"magic": "PSTREE", "entries": [{"pid": 1, "ppid": 1, "pgid": 1, "sid": 1, "pidd": 1}]}`, "pidd"},
		{`{"magic": "PSTREE", "entries": [{"pid": 1, "ppid": 1, "pgid": 1, "sid": 1}], "more": 1}`, "more"},
		{`{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 20, "extra": "AAAA"}]}`, "more than there are"},
		{`{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 2, "extra": "AAAA"}]}`, "extra has 3 bytes"},
		{`{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 2}]}`, "not written"},
		{`{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 2, "extra": "!"}]}`, "base64"},
	} {
		err := crit.Encode(io.Discard, strings.NewReader(c.json))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.json, err, c.want)
		}
	}
}

// FuzzEncode: whatever the text, no panic; what encodes, decodes.
func FuzzEncode(f *testing.F) {
	texts, _ := filepath.Glob("testdata/*.json")
	for _, text := range texts {
		if b, err := os.ReadFile(text); err == nil {
			f.Add(string(b))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		var out bytes.Buffer
		if crit.Encode(&out, strings.NewReader(text)) != nil {
			return
		}
		if _, err := decode(out.Bytes(), crit.Options{Pretty: true}); err != nil {
			t.Errorf("what was encoded does not decode: %v\n%s", err, text)
		}
	})
}
