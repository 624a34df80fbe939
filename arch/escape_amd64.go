package arch

import "bytes"

// Code by which a thread gets away from a system call that was set up in its registers: found in nearly every program,
// because the C library has both, and so has the Go runtime.
var (
	ret            = []byte{0xc3}
	sigreturnLoads = [][]byte{
		{0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00}, // MOVQ $15, AX
		{0xb8, 0x0f, 0x00, 0x00, 0x00},             // MOVL $15, AX
	}
)

// EscapeOverlap is how much of a piece of code to look at again with the next piece.
const EscapeOverlap = 16

// FindEscape returns the offsets in text of a system call instruction followed by a return, and of code that calls
// rt_sigreturn; -1 for what there is not.
func FindEscape(text []byte) (call, sigreturn int) {
	call, sigreturn = -1, -1
	for at := 0; call < 0 || sigreturn < 0; at += syscallInstrBytes {
		next := bytes.Index(text[at:], syscallInstr)
		if next < 0 {
			break
		}
		at += next
		if call < 0 && bytes.HasPrefix(text[at+syscallInstrBytes:], ret) {
			call = at
		}
		for _, load := range sigreturnLoads {
			if sigreturn < 0 && bytes.HasSuffix(text[:at], load) {
				sigreturn = at - len(load)
			}
		}
	}
	return call, sigreturn
}

// EscapeWord is the size of what precedes the signal frame of SetupEscape.
const EscapeWord = 8

// SetupEscape is SetupCall for a thread that is to return by itself, if its tracer does not stop it after the call,
// through the signal frame at address frame: call and sigreturn are addresses of the code FindEscape finds. The bytes
// returned belong EscapeWord bytes before the frame.
func (r *Regs) SetupEscape(call, sigreturn, frame uint64, nr uint64, args ...uint64) (Regs, []byte) {
	c := r.SetupCall(call, nr, args...)
	c.SP = frame - EscapeWord
	return c, le.AppendUint64(nil, sigreturn)
}
