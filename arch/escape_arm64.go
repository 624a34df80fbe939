package arch

import "bytes"

// Code by which a thread gets away from a system call that was set up in its registers. The vdso has the second, libraries
// have the first where a system call is the last thing a function does.
var (
	syscallRet    = []byte{0x01, 0x00, 0x00, 0xd4, 0xc0, 0x03, 0x5f, 0xd6} // svc #0; ret
	sigreturnCode = []byte{0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4} // mov x8, #139; svc #0
)

// EscapeOverlap is how much of a piece of code to look at again with the next piece.
const EscapeOverlap = 16

// FindEscape returns the offsets in text of a system call instruction followed by a return, and of code that calls
// rt_sigreturn; -1 for what there is not.
func FindEscape(text []byte) (call, sigreturn int) {
	return indexAligned(text, syscallRet), indexAligned(text, sigreturnCode)
}

// indexAligned is bytes.Index for code, which begins at multiples of 4.
func indexAligned(text, code []byte) int {
	for at := 0; at+len(code) <= len(text); at += 4 {
		if bytes.HasPrefix(text[at:], code) {
			return at
		}
	}
	return -1
}

// EscapeWord is the size of what precedes the signal frame of SetupEscape.
const EscapeWord = 0

// SetupEscape is SetupCall for a thread that is to return by itself, if its tracer does not stop it after the call,
// through the signal frame at address frame: call and sigreturn are addresses of the code FindEscape finds. The bytes
// returned belong EscapeWord bytes before the frame: none here, the return address is in a register.
func (r *Regs) SetupEscape(call, sigreturn, frame uint64, nr uint64, args ...uint64) (Regs, []byte) {
	c := r.SetupCall(call, nr, args...)
	c.SP = frame
	c.X[30] = sigreturn
	return c, nil
}
