package arch

// A system call of whose progress only the kernel knew, a poll say, and which was interrupted and resumed before is
// restart_syscall by now, and a restored task cannot make that. What it was first is in the task's own text: C libraries and
// runtimes load the number by an immediate shortly before the call.

// restartedText is how much text before the call is looked at, in bytes.
const restartedText = 48

// RestartedText is where the text lies by which NameRestarted tells what the thread's call was first; n is 0 where
// that is known.
func (r *Regs) RestartedText() (addr uint64, n int) {
	if !r.restarted() {
		return 0, 0
	}
	return r.callAddr() - restartedText, restartedText
}

// NameRestarted gives the thread's call its first number back, if text tells it: r is for an image then, not for the thread.
func (r *Regs) NameRestarted(text []byte) bool {
	nr, ok := loadedNumber(text)
	if ok {
		r.setSyscallNr(nr)
	}
	return ok
}
