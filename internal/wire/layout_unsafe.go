package wire

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// layout is how a type of message lies in memory.
type layout struct {
	name    string
	fields  []field      // in the order of their numbers
	unknown uintptr      // offset of the fields that have no place
	foreign reflect.Type // the struct, if it has something this package does not know
}

// field is one field of a message.
type field struct {
	num      protowire.Number
	name     string
	offset   uintptr
	kind     kind
	list     bool
	packed   bool
	required bool
	message  reflect.Type // of kind message: the struct
	inner    *atomic.Pointer[layout]
}

// kind is how a value lies in memory and on the wire.
type kind uint8

const (
	boolean    kind = iota // varints
	bits32                 // int32, enums: sign-extended
	unsigned32             // uint32
	bits64                 // int64, uint64
	zigzag32
	zigzag64
	fixed32 // of four bytes
	fixed64 // of eight
	text
	raw
	message
)

// wireTypes are what kinds look like on the wire.
var wireTypes = [...]protowire.Type{
	boolean: protowire.VarintType, bits32: protowire.VarintType, unsigned32: protowire.VarintType, bits64: protowire.VarintType,
	zigzag32: protowire.VarintType, zigzag64: protowire.VarintType,
	fixed32: protowire.Fixed32Type, fixed64: protowire.Fixed64Type,
	text: protowire.BytesType, raw: protowire.BytesType, message: protowire.BytesType,
}

// layouts are those in use, by type of the struct.
var layouts sync.Map

func layoutOf(t reflect.Type) *layout {
	if l, ok := layouts.Load(t); ok {
		return l.(*layout)
	}
	l, _ := layouts.LoadOrStore(t, newLayout(t))
	return l.(*layout)
}

// of returns the layout of a message and where it is.
func of(m proto.Message) (*layout, unsafe.Pointer) {
	v := reflect.ValueOf(m)
	return layoutOf(v.Type().Elem()), v.UnsafePointer()
}

func newLayout(t reflect.Type) *layout {
	l := &layout{name: t.Name(), fields: make([]field, 0, t.NumField())}
	for i := range t.NumField() {
		f := t.Field(i)
		switch tag, ok := f.Tag.Lookup("protobuf"); {
		case ok:
			made, err := newField(&f, tag)
			if err != nil {
				l.foreign = t
				return l
			}
			l.fields = append(l.fields, made)
		case f.Name == "unknownFields":
			l.unknown = f.Offset
		case f.Name != "state" && f.Name != "sizeCache": // extensions, or one of several
			l.foreign = t
			return l
		}
	}
	if l.unknown == 0 {
		l.foreign = t
	}
	slices.SortFunc(l.fields, func(a, b field) int { return cmp.Compare(a.num, b.num) })
	return l
}

// layout is the layout of the messages in a field. It is made when it is first needed, which it mostly never is.
func (f *field) layout() *layout {
	if l := f.inner.Load(); l != nil {
		return l
	}
	l := layoutOf(f.message)
	f.inner.Store(l)
	return l
}

// Prepare does ahead what is done when a type of message is first used, for a message and those that are set in it.
func Prepare(m proto.Message) {
	l, p := of(m)
	l.prepare(p)
}

func (l *layout) prepare(p unsafe.Pointer) {
	for i := range l.fields {
		f := &l.fields[i]
		at := unsafe.Add(p, f.offset)
		switch {
		case f.kind != message || *(*unsafe.Pointer)(at) == nil:
		case f.list:
			for _, m := range *(*[]unsafe.Pointer)(at) {
				f.layout().prepare(m)
			}
		default:
			f.layout().prepare(*(*unsafe.Pointer)(at))
		}
	}
}

// forProto is the message at p for package proto.
func (l *layout) forProto(p unsafe.Pointer) proto.Message {
	return reflect.NewAt(l.foreign, p).Interface().(proto.Message)
}

// newField reads a tag: how it is encoded, number, opt, req or rep, and further words.
func newField(f *reflect.StructField, tag string) (field, error) {
	encoding, rest, _ := strings.Cut(tag, ",")
	number, rest, _ := strings.Cut(rest, ",")
	label, rest, _ := strings.Cut(rest, ",")
	num, err := strconv.Atoi(number)
	if err != nil {
		return field{}, err
	}
	n := field{num: protowire.Number(num), offset: f.Offset, list: label == "rep", required: label == "req"}
	for word := range strings.SplitSeq(rest, ",") {
		switch name, isName := strings.CutPrefix(word, "name="); {
		case isName:
			n.name = name
		case word == "packed":
			n.packed = true
		case word == "proto3" || word == "oneof" || word == "group":
			return field{}, fmt.Errorf("%s", word)
		}
	}
	value := f.Type
	switch {
	case n.list && value.Kind() == reflect.Slice:
		value = value.Elem()
	case !n.list && value.Kind() == reflect.Pointer && value.Elem().Kind() != reflect.Struct:
		value = value.Elem()
	case !n.list && (value.Kind() == reflect.Pointer || value.Kind() == reflect.Slice): // a message, bytes
	default:
		return field{}, fmt.Errorf("a field of type %v", f.Type)
	}
	if value.Kind() == reflect.Pointer && value.Elem().Kind() == reflect.Struct && encoding == "bytes" {
		n.kind, n.message, n.inner = message, value.Elem(), new(atomic.Pointer[layout])
		return n, nil
	}
	n.kind, err = kindOf(encoding, value)
	return n, err
}

// kindOf tells the kind of a scalar.
func kindOf(encoding string, t reflect.Type) (kind, error) {
	switch k := t.Kind(); {
	case encoding == "varint" && k == reflect.Bool:
		return boolean, nil
	case encoding == "varint" && k == reflect.Int32:
		return bits32, nil
	case encoding == "varint" && k == reflect.Uint32:
		return unsigned32, nil
	case encoding == "varint" && (k == reflect.Int64 || k == reflect.Uint64):
		return bits64, nil
	case encoding == "zigzag32" && k == reflect.Int32:
		return zigzag32, nil
	case encoding == "zigzag64" && k == reflect.Int64:
		return zigzag64, nil
	case encoding == "fixed32" && (k == reflect.Int32 || k == reflect.Uint32):
		return fixed32, nil
	case encoding == "fixed64" && (k == reflect.Int64 || k == reflect.Uint64):
		return fixed64, nil
	case encoding == "bytes" && k == reflect.String:
		return text, nil
	case encoding == "bytes" && k == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return raw, nil
	}
	return 0, fmt.Errorf("a %s of type %v", encoding, t)
}

// size is how many bytes a scalar of fixed size has in memory.
func (k kind) size() int {
	switch k {
	case boolean:
		return 1
	case bits64, zigzag64, fixed64:
		return 8
	}
	return 4
}

// load returns a scalar as it goes on the wire.
func (k kind) load(p unsafe.Pointer) uint64 {
	switch k {
	case boolean:
		return protowire.EncodeBool(*(*bool)(p))
	case bits32:
		return uint64(int64(*(*int32)(p)))
	case zigzag32:
		return protowire.EncodeZigZag(int64(*(*int32)(p)))
	case zigzag64:
		return protowire.EncodeZigZag(*(*int64)(p))
	case bits64, fixed64:
		return *(*uint64)(p)
	}
	return uint64(*(*uint32)(p))
}

// fromWire is what of a value on the wire is kept in memory.
func (k kind) fromWire(v uint64) uint64 {
	switch k {
	case boolean:
		return protowire.EncodeBool(protowire.DecodeBool(v))
	case zigzag32:
		return uint64(protowire.DecodeZigZag(v & (1<<32 - 1)))
	case zigzag64:
		return uint64(protowire.DecodeZigZag(v))
	}
	return v
}
