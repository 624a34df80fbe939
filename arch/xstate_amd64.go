package arch

import (
	"bytes"
	"fmt"
	"sync"
)

// XStateRegSet is the register set that holds the extended state: NT_X86_XSTATE, in the standard (not compacted)
// layout of XSAVE.
const XStateRegSet = 0x202

// Components of the extended state, bit numbers in XSTATE_BV and XCR0.
const (
	XFeatureFP       = 0
	XFeatureSSE      = 1
	XFeatureYMM      = 2
	XFeatureBndRegs  = 3
	XFeatureBndCSR   = 4
	XFeatureOpmask   = 5
	XFeatureZMMHi256 = 6
	XFeatureHi16ZMM  = 7
	XFeaturePKRU     = 9
	XFeatureTileCfg  = 17 // AMX
	XFeatureTileData = 18 // AMX, only for tasks that asked for it
)

const (
	xsaveLegacy  = 512 // FXSAVE area
	xsaveHeader  = 64
	swReserved   = 464 // software bytes of the FXSAVE area: XCR0 in the register set, the magic in a signal frame
	xstateBV     = 512
	maxXFeature  = 63
	tileDataMask = 1 << XFeatureTileData
)

// XComponent is where one component lies in the standard layout, from cpuid leaf 0xd.
type XComponent struct{ Offset, Size uint32 }

// XComponents are the components this processor and kernel have, by number; absent ones have size 0.
var XComponents = sync.OnceValue(func() (c [maxXFeature]XComponent) {
	have := XFeatures()
	for i := 2; i < maxXFeature; i++ {
		if have&(1<<i) != 0 {
			size, offset, _, _ := cpuid(0xd, uint32(i))
			c[i] = XComponent{offset, size}
		}
	}
	return c
})

// XFeatures is the set of components the kernel has switched on (XCR0), 0 without XSAVE.
var XFeatures = sync.OnceValue(func() uint64 {
	if _, _, ecx, _ := cpuid(1, 0); ecx&(1<<27) == 0 { // OSXSAVE
		return 0
	}
	return xgetbv(0)
})

// XStateMax is the size in bytes of the largest extended state a thread can have here.
var XStateMax = sync.OnceValue(func() int {
	return max(int(xstateSize(XFeatures())), xsaveLegacy)
})

// xstateSize is the size of the standard layout up to the last of the given components.
func xstateSize(features uint64) uint32 {
	size := uint32(xsaveLegacy + xsaveHeader)
	for i, c := range XComponents() {
		if i >= 2 && features&(1<<i) != 0 {
			size = max(size, c.Offset+c.Size)
		}
	}
	return size
}

// TrimXState is a copy of an extended state without the zeroes at its end: most threads use little of what the processor
// has, and there may be thousands of them.
func TrimXState(state []byte) []byte {
	const least = xsaveLegacy + xsaveHeader
	if len(state) <= least {
		return bytes.Clone(state)
	}
	return bytes.Clone(state[:least+len(bytes.TrimRight(state[least:], "\x00"))])
}

// PadXState is a state TrimXState has made, in its full length. It lies in room if that has XStateMax bytes.
func PadXState(room, state []byte) []byte {
	if len(state) < xsaveLegacy+xsaveHeader || len(state) >= XStateMax() { // without XSAVE there is nothing to trim
		return state
	}
	room = append(room[:0], state...)
	return append(room, make([]byte, XStateMax()-len(room))...)
}

// Marks of the extended state in a signal frame.
const (
	fpXStateMagic1 = 0x46505853
	fpXStateMagic2 = 0x46505845
)

// frameXState appends to room the extended state in the form rt_sigreturn wants. The kernel compares the size with what the
// thread may use and falls back to SSE alone if it is larger, so the state of AMX tiles, for which a thread has to
// ask, is there only when in use.
func frameXState(room, state []byte) ([]byte, error) {
	if len(state) < xsaveLegacy+xsaveHeader {
		if len(state) == xsaveLegacy { // a processor without XSAVE
			return append(room, state...), nil
		}
		return nil, fmt.Errorf("an extended state of %d bytes is too short", len(state))
	}
	features := XFeatures()
	if le.Uint64(state[xstateBV:])&tileDataMask == 0 {
		features &^= tileDataMask
	}
	size := xstateSize(features)
	start := len(room)
	room = append(room, make([]byte, size+4)...)
	b := room[start:]
	copy(b[:size], state)
	le.PutUint32(b[swReserved:], fpXStateMagic1)
	le.PutUint32(b[swReserved+4:], size+4)
	le.PutUint64(b[swReserved+8:], features)
	le.PutUint32(b[swReserved+16:], size)
	le.PutUint32(b[size:], fpXStateMagic2)
	return room, nil
}
