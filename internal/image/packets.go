package image

import (
	"errors"
	"fmt"

	"cryo/internal/wire"

	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"google.golang.org/protobuf/encoding/protowire"
)

// packetsField is a number in pipe_data_entry far from those that criu gives out. criu, which does not dump pipes in
// packet mode, skips it.
const packetsField = 7001

// SetPipePackets notes where the packets in a pipe end (O_DIRECT, Linux 3.4): the length of each, in order. criu's format
// has no place for it, so it rides as a field that the description does not name.
func SetPipePackets(e *pipe_data.PipeDataEntry, lengths []int) {
	var packed []byte
	for _, n := range lengths {
		packed = protowire.AppendVarint(packed, uint64(n))
	}
	b := protowire.AppendTag(wire.Unknown(e), packetsField, protowire.BytesType)
	wire.SetUnknown(e, protowire.AppendBytes(b, packed))
}

// PipePackets are the lengths that SetPipePackets noted; nil if the bytes are a stream. Lengths that do not make up the
// entry's bytes, or are of no packet, are an error of the image.
func PipePackets(e *pipe_data.PipeDataEntry) ([]int, error) {
	for b := wire.Unknown(e); len(b) > 0; {
		num, typ, n := protowire.ConsumeField(b)
		if n < 0 {
			break
		}
		if num == packetsField && typ == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(b)
			packed, _ := protowire.ConsumeBytes(b[tag:])
			return unpackLengths(packed, uint64(e.GetBytes()))
		}
		b = b[n:]
	}
	return nil, nil
}

func unpackLengths(packed []byte, total uint64) (lengths []int, err error) {
	for len(packed) > 0 {
		v, n := protowire.ConsumeVarint(packed)
		if n < 0 || v == 0 || v > total {
			return nil, errors.New("the packets of a pipe are more than its bytes")
		}
		lengths = append(lengths, int(v))
		total -= v
		packed = packed[n:]
	}
	if total != 0 {
		return nil, fmt.Errorf("the packets of a pipe lack %d of its bytes", total)
	}
	return lengths, nil
}
