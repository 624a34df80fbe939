package remote

import (
	"syscall"

	"cryo/internal/ptrace"
)

// stopSignals are the signals a program may stop with: whoever does not handle them ignores them.
var stopSignals = [...]syscall.Signal{syscall.SIGURG, syscall.SIGWINCH, syscall.SIGCHLD}

// chooseSignal finds a signal that means nothing to the thread: not handled, not pending, not blocked to be read
// otherwise. 0 if there is none.
func (s *Session) chooseSignal(t *Thread) syscall.Signal {
	if s.restored {
		return restoreSignal
	}
	for _, sig := range stopSignals {
		if s.meansNothing(t, sig) {
			return sig
		}
	}
	if s.meansNothing(t, syscall.SIGCONT) && s.mayContinue(t) {
		return syscall.SIGCONT
	}
	return 0
}

func (s *Session) meansNothing(t *Thread, sig syscall.Signal) bool {
	return (s.status.SigCgt|s.status.SigPnd|s.status.ShdPnd|t.SigMask)&signalBit(sig) == 0
}

func signalBit(sig syscall.Signal) uint64 { return 1 << (sig - 1) }

// mayContinue says whether SIGCONT has no other effect than to be ignored: the task is not in a group-stop, and no signal
// that stops it is pending. It is for Go programs, which handle everything else.
func (s *Session) mayContinue(t *Thread) bool {
	stops := signalBit(syscall.SIGSTOP) | signalBit(syscall.SIGTSTP) | signalBit(syscall.SIGTTIN) | signalBit(syscall.SIGTTOU)
	if (s.status.SigPnd|s.status.ShdPnd)&stops != 0 {
		return false
	}
	si, err := ptrace.SigInfo(t.TID)
	return err == nil && si.Signo == int32(syscall.SIGTRAP) && si.Code == int32(syscall.SIGTRAP)|ptrace.EventStop<<8
}
