package arch

import "bytes"

// XStateRegSet is the register set that holds the extended state: NT_PRFPREG, struct user_fpsimd_state, 32 vector
// registers of 128 bits, FPSR and FPCR.
const XStateRegSet = 2

const (
	vectorBytes  = 32 * 16
	fpsimdFPSR   = vectorBytes
	fpsimdFPCR   = vectorBytes + 4
	fpsimdStruct = vectorBytes + 16
)

// XStateMax is the size in bytes of the largest extended state a thread can have here.
func XStateMax() int { return fpsimdStruct }

// XFeatures is of no use on arm64.
func XFeatures() uint64 { return 0 }

// TrimXState is a copy of an extended state; here there is little that could be left out of it.
func TrimXState(state []byte) []byte { return bytes.Clone(state) }

// PadXState is a state TrimXState has made, in its full length.
func PadXState(_, state []byte) []byte { return state }
