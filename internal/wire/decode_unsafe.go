package wire

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// depth is how deep messages may lie in one another. None of criu's is recursive, so a deeper one is hostile.
const depth = 32

var (
	errDeep   = errors.New("messages lie too deep in one another")
	errNumber = errors.New("a field has too large a number")
)

// Unmarshal decodes b into m, which is emptied first. It keeps nothing of b. A required field that is missing is an error.
func Unmarshal(b []byte, m proto.Message) error {
	l, p := of(m)
	m.(interface{ Reset() }).Reset() // all generated messages have it
	if err := l.decode(b, p, depth); err != nil {
		return err
	}
	return l.check(p)
}

// decode adds what is in b to the message at p.
func (l *layout) decode(b []byte, p unsafe.Pointer, depth int) (err error) {
	if depth == 0 {
		return errDeep
	}
	if l.foreign != nil {
		return proto.UnmarshalOptions{Merge: true, AllowPartial: true, RecursionLimit: depth}.Unmarshal(b, l.forProto(p))
	}
	for at := 0; len(b) > 0; {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		if num > protowire.MaxValidNumber {
			return errNumber
		}
		n := 0
		if at = l.find(num, at); at < len(l.fields) && l.fields[at].num == num && l.fields[at].takes(typ) {
			f := &l.fields[at]
			n, err = f.decode(b[tag:], typ, unsafe.Add(p, f.offset), depth)
		} else if n = protowire.ConsumeFieldValue(num, typ, b[tag:]); n >= 0 {
			unknown := (*[]byte)(unsafe.Add(p, l.unknown))
			*unknown = append(protowire.AppendTag(*unknown, num, typ), b[tag:tag+n]...)
		}
		if err != nil {
			return err
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[tag+n:]
	}
	return nil
}

// find returns the place of the field with a number, if there is one. Mostly it is the one found last or the one behind.
func (l *layout) find(num protowire.Number, last int) int {
	for i := last; i < min(last+2, len(l.fields)); i++ {
		if l.fields[i].num == num {
			return i
		}
	}
	i, _ := slices.BinarySearchFunc(l.fields, num, func(f field, num protowire.Number) int { return cmp.Compare(f.num, num) })
	return i
}

// takes says whether values of the field come as this type: scalars of a list also packed.
func (f *field) takes(typ protowire.Type) bool {
	return typ == wireTypes[f.kind] || f.list && f.kind < text && typ == protowire.BytesType
}

// decode takes the value b begins with, and returns its size, negative where it makes no sense.
func (f *field) decode(b []byte, typ protowire.Type, at unsafe.Pointer, depth int) (int, error) {
	if typ != protowire.BytesType {
		v, n := consume(b, typ)
		if n >= 0 {
			f.store(at, f.kind.fromWire(v))
		}
		return n, nil
	}
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return n, nil
	}
	switch f.kind {
	case text:
		if s := string(v); f.list {
			*(*[]string)(at) = append(*(*[]string)(at), s)
		} else {
			*(**string)(at) = &s
		}
	case raw:
		if v := append([]byte{}, v...); f.list {
			*(*[][]byte)(at) = append(*(*[][]byte)(at), v)
		} else {
			*(*[]byte)(at) = v
		}
	case message:
		return n, f.layout().decode(v, f.next(at), depth-1)
	default:
		for len(v) > 0 {
			x, n := consume(v, wireTypes[f.kind])
			if n < 0 {
				return n, nil
			}
			f.store(at, f.kind.fromWire(x))
			v = v[n:]
		}
	}
	return n, nil
}

// consume takes a scalar.
func consume(b []byte, typ protowire.Type) (uint64, int) {
	switch typ {
	case protowire.Fixed32Type:
		v, n := protowire.ConsumeFixed32(b)
		return uint64(v), n
	case protowire.Fixed64Type:
		return protowire.ConsumeFixed64(b)
	}
	return protowire.ConsumeVarint(b)
}

// store sets the scalar of a field, or appends it to its list.
func (f *field) store(at unsafe.Pointer, v uint64) {
	switch f.kind.size() {
	case 1:
		put(f, at, v != 0)
	case 4:
		put(f, at, uint32(v))
	default:
		put(f, at, v)
	}
}

func put[T any](f *field, at unsafe.Pointer, v T) {
	if f.list {
		*(*[]T)(at) = append(*(*[]T)(at), v)
		return
	}
	*(**T)(at) = &v
}

// next is the message of a field that is decoded next: the one that is there, or a new one.
func (f *field) next(at unsafe.Pointer) unsafe.Pointer {
	if !f.list && *(*unsafe.Pointer)(at) != nil {
		return *(*unsafe.Pointer)(at)
	}
	m := reflect.New(f.message).UnsafePointer()
	if f.list {
		*(*[]unsafe.Pointer)(at) = append(*(*[]unsafe.Pointer)(at), m)
	} else {
		*(*unsafe.Pointer)(at) = m
	}
	return m
}

// check looks for required fields that are not set.
func (l *layout) check(p unsafe.Pointer) error {
	if l.foreign != nil {
		return proto.CheckInitialized(l.forProto(p))
	}
	for i := range l.fields {
		f := &l.fields[i]
		at := unsafe.Add(p, f.offset)
		value := *(*unsafe.Pointer)(at)
		switch {
		case f.required && value == nil:
			return fmt.Errorf("required field %s of %s is not set", f.name, l.name)
		case f.kind != message || value == nil:
		case f.list:
			for _, m := range *(*[]unsafe.Pointer)(at) {
				if err := f.layout().check(m); err != nil {
					return err
				}
			}
		default:
			if err := f.layout().check(value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Unknown are the encoded fields of a message that its type does not name.
func Unknown(m proto.Message) []byte {
	if l, p := of(m); l.foreign == nil {
		return *(*[]byte)(unsafe.Add(p, l.unknown))
	}
	return m.ProtoReflect().GetUnknown()
}

// SetUnknown replaces them.
func SetUnknown(m proto.Message, b []byte) {
	if l, p := of(m); l.foreign == nil {
		*(*[]byte)(unsafe.Add(p, l.unknown)) = b
		return
	}
	m.ProtoReflect().SetUnknown(b)
}
