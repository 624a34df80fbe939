package arch

// Layout of struct ucontext on amd64, the part of the signal frame rt_sigreturn reads.
const (
	ucStackFlags = 24
	ucMcontext   = 40
	mcCS         = 144
	mcSS         = 150
	mcFPState    = 184
	ucSigMask    = 296
	ucSize       = 304

	ucFPXState      = 1 // UC_FP_XSTATE: the extended state has magic marks
	ucSigContextSS  = 2
	ucStrictSS      = 4
	xstateAlignment = 64
)

// keepAltStack is a value of ss_flags sigaltstack refuses. rt_sigreturn ignores that, so the thread keeps the
// alternate signal stack it has.
const keepAltStack = 0xff

// SigFrameSize is an upper bound of the size of a signal frame in bytes.
func SigFrameSize() int { return ucSize + XStateMax() + 4 + xstateAlignment }

// SigFrame appends to room the bytes of a signal frame to be put at address at, a multiple of 64. A thread that calls
// rt_sigreturn with the stack pointer at that address gets the registers, extended state and signal mask given, and
// keeps its alternate signal stack. A system call to be restarted is restarted.
func SigFrame(room []byte, r *Regs, xstate []byte, mask uint64, at uint64) ([]byte, error) {
	const fp = (ucSize + xstateAlignment - 1) &^ (xstateAlignment - 1)
	start := len(room)
	room, err := frameXState(append(room, make([]byte, fp)...), xstate)
	if err != nil {
		return nil, err
	}
	c := *r
	c.FixRestart()
	b := room[start:]
	le.PutUint64(b, ucFPXState|ucSigContextSS|ucStrictSS)
	le.PutUint32(b[ucStackFlags:], keepAltStack)
	regs := [...]uint64{c.R8, c.R9, c.R10, c.R11, c.R12, c.R13, c.R14, c.R15,
		c.DI, c.SI, c.BP, c.BX, c.DX, c.AX, c.CX, c.SP, c.IP, c.Flags}
	for i, v := range regs {
		le.PutUint64(b[ucMcontext+8*i:], v)
	}
	le.PutUint16(b[ucMcontext+mcCS:], uint16(c.CS))
	le.PutUint16(b[ucMcontext+mcSS:], uint16(c.SS))
	le.PutUint64(b[ucMcontext+mcFPState:], at+uint64(fp))
	le.PutUint64(b[ucSigMask:], mask)
	return room, nil
}
