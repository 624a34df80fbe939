package wire

import (
	"fmt"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Append appends the bytes of m to b. A required field that is not set is an error.
func Append(b []byte, m proto.Message) ([]byte, error) {
	l, p := of(m)
	return l.append(b, p)
}

// append appends the bytes of the message at p.
func (l *layout) append(b []byte, p unsafe.Pointer) (_ []byte, err error) {
	if l.foreign != nil {
		return proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, l.forProto(p))
	}
	for i := range l.fields {
		f := &l.fields[i]
		at := unsafe.Add(p, f.offset)
		if f.list {
			b, err = f.appendList(b, at)
		} else {
			b, err = f.appendOne(b, at, l)
		}
		if err != nil {
			return b, err
		}
	}
	return append(b, *(*[]byte)(unsafe.Add(p, l.unknown))...), nil
}

// appendOne appends the field that a pointer or a slice of bytes at an address holds, if it is set.
func (f *field) appendOne(b []byte, at unsafe.Pointer, l *layout) ([]byte, error) {
	value := *(*unsafe.Pointer)(at) // of bytes: where they are, nil as well if there are none at all
	switch {
	case value == nil && f.required:
		return b, fmt.Errorf("required field %s of %s is not set", f.name, l.name)
	case value == nil:
		return b, nil
	case f.kind == raw:
		return f.appendValue(b, at)
	}
	return f.appendValue(b, value)
}

// appendValue appends a tag and the value at an address.
func (f *field) appendValue(b []byte, at unsafe.Pointer) ([]byte, error) {
	b = protowire.AppendTag(b, f.num, wireTypes[f.kind])
	switch f.kind {
	case text:
		return protowire.AppendString(b, *(*string)(at)), nil
	case raw:
		return protowire.AppendBytes(b, *(*[]byte)(at)), nil
	case message:
		start := len(b)
		b, err := f.layout().append(append(b, 0), at)
		return putSize(b, start), err
	}
	return f.appendScalar(b, at), nil
}

func (f *field) appendScalar(b []byte, at unsafe.Pointer) []byte {
	switch v := f.kind.load(at); f.kind {
	case fixed32:
		return protowire.AppendFixed32(b, uint32(v))
	case fixed64:
		return protowire.AppendFixed64(b, v)
	default:
		return protowire.AppendVarint(b, v)
	}
}

// putSize puts the size of what was appended behind the byte at start there: that of most is one byte long.
func putSize(b []byte, start int) []byte {
	size := uint64(len(b) - start - 1)
	if more := protowire.SizeVarint(size) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[start+1+more:], b[start+1:])
	}
	protowire.AppendVarint(b[:start], size)
	return b
}

// appendList appends the field that the slice at an address holds, once for each of its elements.
func (f *field) appendList(b []byte, at unsafe.Pointer) (_ []byte, err error) {
	first, n, size := f.elements(at)
	if f.packed && f.kind < text {
		if n == 0 {
			return b, nil
		}
		b = append(protowire.AppendTag(b, f.num, protowire.BytesType), 0)
		start := len(b) - 1
		for i := range n {
			b = f.appendScalar(b, unsafe.Add(first, i*size))
		}
		return putSize(b, start), nil
	}
	for i := range n {
		element := unsafe.Add(first, i*size)
		if f.kind == message {
			if element = *(*unsafe.Pointer)(element); element == nil {
				return b, fmt.Errorf("an element of %s is not there", f.name)
			}
		}
		if b, err = f.appendValue(b, element); err != nil {
			return b, err
		}
	}
	return b, nil
}

// elements tells where the elements of the slice at an address are, how many, and of what size.
func (f *field) elements(at unsafe.Pointer) (first unsafe.Pointer, n, size int) {
	switch f.kind {
	case text:
		s := *(*[]string)(at)
		return unsafe.Pointer(unsafe.SliceData(s)), len(s), int(unsafe.Sizeof(""))
	case raw:
		s := *(*[][]byte)(at)
		return unsafe.Pointer(unsafe.SliceData(s)), len(s), int(unsafe.Sizeof([]byte{}))
	case message:
		s := *(*[]unsafe.Pointer)(at)
		return unsafe.Pointer(unsafe.SliceData(s)), len(s), int(unsafe.Sizeof(unsafe.Pointer(nil)))
	}
	s := *(*[]byte)(at) // the length of a slice of anything
	return unsafe.Pointer(unsafe.SliceData(s)), len(s), f.kind.size()
}
