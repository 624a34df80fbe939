package arch

import "fmt"

// Layout of struct rt_sigframe on arm64: siginfo, then struct ucontext.
const (
	sfStackFlags = 152
	sfSigMask    = 168
	sfRegs       = 312
	sfSP         = sfRegs + 31*8
	sfPC         = sfSP + 8
	sfPState     = sfPC + 8
	sfReserved   = 592 // records, each with a magic number and its size
	sfSize       = sfReserved + 4096

	fpsimdMagic  = 0x46508001
	fpsimdRecord = 8 + 8 + vectorBytes
)

// keepAltStack is a value of ss_flags sigaltstack refuses. rt_sigreturn ignores that, so the thread keeps the
// alternate signal stack it has.
const keepAltStack = 0xff

// SigFrameSize is an upper bound of the size of a signal frame in bytes.
func SigFrameSize() int { return sfSize }

// SigFrame appends to room the bytes of a signal frame to be put at address at, a multiple of 64. A thread that calls
// rt_sigreturn with the stack pointer at that address gets the registers, extended state and signal mask given, and
// keeps its alternate signal stack. A system call to be restarted is restarted.
func SigFrame(room []byte, r *Regs, xstate []byte, mask uint64, at uint64) ([]byte, error) {
	if len(xstate) < fpsimdFPCR+4 {
		return nil, fmt.Errorf("an extended state of %d bytes is too short", len(xstate))
	}
	start := len(room)
	room = append(room, make([]byte, sfSize)...)
	b := room[start:]
	le.PutUint32(b[sfStackFlags:], keepAltStack)
	le.PutUint64(b[sfSigMask:], mask)
	putWords64(b[sfRegs:], r.X[:])
	le.PutUint64(b[sfSP:], r.SP)
	le.PutUint64(b[sfPC:], r.IP)
	le.PutUint64(b[sfPState:], r.PState)
	rec := b[sfReserved:]
	le.PutUint32(rec, fpsimdMagic)
	le.PutUint32(rec[4:], fpsimdRecord)
	copy(rec[8:], xstate[fpsimdFPSR:fpsimdFPCR+4])
	copy(rec[16:], xstate[:vectorBytes])
	return room, nil // a record of zeroes ends the list
}
