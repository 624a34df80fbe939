package restorers

import (
	"errors"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

const sizeofComm = 16

func checkName(e *StateEmit) error {
	if len(nameOf(e)) >= sizeofComm {
		return errors.New("a name of more than 15 bytes")
	}
	return nil
}

// nameOf is the thread's own name; sets of old criu have only the task's.
func nameOf(e *StateEmit) string {
	if name := e.Thread.GetThreadCore().GetComm(); name != "" {
		return name
	}
	return e.Task.GetTc().GetComm()
}

func emitName(e *StateEmit) {
	e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_NAME), e.String(nameOf(e))).Must().Discard()
}

// emitTidAddress sets where the kernel writes 0 and wakes a futex when the thread ends.
func emitTidAddress(e *StateEmit) {
	if addr := clearTidAddress(e.Thread); addr != 0 {
		e.Call(unix.SYS_SET_TID_ADDRESS, remote.Imm(addr)).Discard()
	}
}

// emitRobustList sets the list of locks that the kernel marks when the thread ends.
func emitRobustList(e *StateEmit) {
	tc := e.Thread.GetThreadCore()
	if tc.GetFutexRla() == 0 {
		return
	}
	e.Call(unix.SYS_SET_ROBUST_LIST, remote.Imm(tc.GetFutexRla()), remote.Imm(tc.GetFutexRlaLen())).Must().Discard()
}

// emitRseq registers the area of restartable sequences again. A critical section the thread was in was decided when it
// was dumped.
func emitRseq(e *StateEmit) {
	rseq := e.Thread.GetThreadCore().GetRseqEntry()
	if rseq.GetRseqAbiPointer() == 0 {
		return
	}
	e.Call(unix.SYS_RSEQ, remote.Imm(rseq.GetRseqAbiPointer()), remote.Imm(rseq.GetRseqAbiSize()), remote.Imm(0),
		remote.Imm(rseq.GetSignature())).Must().Discard()
}

func emitParentDeathSignal(e *StateEmit) {
	if sig := e.Thread.GetThreadCore().GetPdeathSig(); sig != 0 {
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_PDEATHSIG), remote.Imm(sig)).Must().Discard()
	}
}
