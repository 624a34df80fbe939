package image

import (
	"encoding/binary"
	"errors"

	"cryo/internal/iouring"
	"cryo/internal/wire"

	ext_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"google.golang.org/protobuf/encoding/protowire"
)

// IOURing is a ring of io_uring(7) with nothing in flight. criu's format has no place for it: it rides in ext_file_entry,
// the entry of a file that only a plugin can restore, as a field that its description does not name. So criu, which has no
// such plugin, refuses the set.
type IOURing struct {
	// Flags are those of io_uring_setup(2) that matter.
	Flags                uint32
	SQEntries, CQEntries uint32
	// SQHead is how many requests the kernel has taken, CQTail how many completions it has made, modulo 2^32.
	SQHead, CQTail uint32
	// SQ and CQ say where things are in Rings, as io_uring_setup does: a program knows that by heart.
	SQ iouring.SQOffsets
	CQ iouring.CQOffsets
	// Rings and SQEs are the memory that programs map, without the zeros at the end.
	Rings, SQEs []byte
	// Buffers are those registered with the ring, in the memory of the task that owns it.
	Buffers []RingBuffer
}

// RingBuffer is a registered buffer; a free place has length 0.
type RingBuffer struct{ Addr, Len uint64 }

// ioURingField is far behind the numbers that criu may come to use.
const ioURingField = 7001

// The fields of an IOURing.
const (
	ringRings = 100
	ringSQEs  = 101
	ringBufs  = 102
)

// numbers are the numbers of a ring, in the order of the fields that hold them, from 1 on.
func (r *IOURing) numbers() []*uint32 {
	return []*uint32{
		&r.Flags, &r.SQEntries, &r.CQEntries, &r.SQHead, &r.CQTail,
		&r.SQ.Head, &r.SQ.Tail, &r.SQ.RingMask, &r.SQ.RingEntries, &r.SQ.Flags, &r.SQ.Dropped, &r.SQ.Array,
		&r.CQ.Head, &r.CQ.Tail, &r.CQ.RingMask, &r.CQ.RingEntries, &r.CQ.Overflow, &r.CQ.CQEs, &r.CQ.Flags,
	}
}

// SetIOURing puts a ring into the entry.
func SetIOURing(e *ext_file.ExtFileEntry, r *IOURing) {
	var m []byte
	for i, n := range r.numbers() {
		m = protowire.AppendVarint(protowire.AppendTag(m, protowire.Number(1+i), protowire.VarintType), uint64(*n))
	}
	m = protowire.AppendBytes(protowire.AppendTag(m, ringRings, protowire.BytesType), trimZeros(r.Rings))
	m = protowire.AppendBytes(protowire.AppendTag(m, ringSQEs, protowire.BytesType), trimZeros(r.SQEs))
	if len(r.Buffers) > 0 {
		var bufs []byte
		for _, b := range r.Buffers {
			bufs = protowire.AppendVarint(protowire.AppendVarint(bufs, b.Addr), b.Len)
		}
		m = protowire.AppendBytes(protowire.AppendTag(m, ringBufs, protowire.BytesType), bufs)
	}
	wire.SetUnknown(e, protowire.AppendBytes(protowire.AppendTag(wire.Unknown(e), ioURingField, protowire.BytesType), m))
}

// Number is a position or another number in Rings, by its offset; 0 if it lies behind the end.
func (r *IOURing) Number(off uint32) uint32 {
	if uint64(off)+4 > uint64(len(r.Rings)) {
		return 0
	}
	return binary.NativeEndian.Uint32(r.Rings[off:])
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// GetIOURing reads what SetIOURing has put there; nil if nothing was: the file is of a plugin of criu's.
func GetIOURing(e *ext_file.ExtFileEntry) (*IOURing, error) {
	if e == nil {
		return nil, nil
	}
	var r *IOURing
	var err error
	eachField(wire.Unknown(e), func(num protowire.Number, m []byte) {
		if num == ioURingField && r == nil {
			r = &IOURing{}
			err = r.parse(m)
		}
	})
	return r, err
}

func (r *IOURing) parse(m []byte) error {
	numbers := r.numbers()
	for len(m) > 0 {
		num, typ, n := protowire.ConsumeTag(m)
		if n < 0 {
			return errors.New("an io_uring is cut off")
		}
		m = m[n:]
		if n = protowire.ConsumeFieldValue(num, typ, m); n < 0 {
			return errors.New("an io_uring is cut off")
		}
		switch {
		case typ == protowire.VarintType && num >= 1 && int(num) <= len(numbers):
			v, _ := protowire.ConsumeVarint(m)
			if v>>32 != 0 {
				return errors.New("a number of an io_uring has more than 32 bits")
			}
			*numbers[num-1] = uint32(v)
		case typ == protowire.BytesType && num == ringRings:
			r.Rings, _ = protowire.ConsumeBytes(m)
		case typ == protowire.BytesType && num == ringSQEs:
			r.SQEs, _ = protowire.ConsumeBytes(m)
		case typ == protowire.BytesType && num == ringBufs:
			bufs, _ := protowire.ConsumeBytes(m)
			for len(bufs) > 0 {
				var b RingBuffer
				for _, v := range []*uint64{&b.Addr, &b.Len} {
					var size int
					if *v, size = protowire.ConsumeVarint(bufs); size < 0 {
						return errors.New("the buffers of an io_uring are cut off")
					}
					bufs = bufs[size:]
				}
				r.Buffers = append(r.Buffers, b)
			}
		default:
			return errors.New("an io_uring has something that is not known here: a newer version has dumped it")
		}
		m = m[n:]
	}
	return nil
}
