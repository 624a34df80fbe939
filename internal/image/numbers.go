package image

import (
	"cryo/internal/wire"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// setNumber adds a number to a message as a field that its description does not name; criu skips it. Zero is left out.
func setNumber(m proto.Message, num protowire.Number, v uint64) {
	if v == 0 {
		return
	}
	b := protowire.AppendTag(wire.Unknown(m), num, protowire.VarintType)
	wire.SetUnknown(m, protowire.AppendVarint(b, v))
}

// eachNumber goes over the fields of a message that its description does not name and that are numbers, as far as they
// make sense.
func eachNumber(m proto.Message, do func(num protowire.Number, v uint64)) {
	for b := wire.Unknown(m); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if size < 0 {
			return
		}
		if v, m := protowire.ConsumeVarint(b[n:]); m > 0 && typ == protowire.VarintType {
			do(num, v)
		}
		b = b[n+size:]
	}
}
