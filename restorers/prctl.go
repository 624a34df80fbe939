package restorers

import (
	"math/bits"

	"cryo/internal/image"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

func emitPersonality(e *StateEmit) {
	if p := e.Task.GetTc().GetPersonality(); p != 0 {
		e.Call(unix.SYS_PERSONALITY, remote.Imm(p)).Must().Discard()
	}
}

// emitChildSubreaper comes before the first fork, so that orphans of dead leaders fall to the right task.
func emitChildSubreaper(e *StateEmit) {
	if e.Task.GetTc().GetChildSubreaper() {
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_CHILD_SUBREAPER), remote.Imm(1), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	}
}

func emitHugePages(e *StateEmit) {
	if e.MM.GetThpDisabled() {
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_THP_DISABLE), remote.Imm(1), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	}
}

// emitTimerSlack is for threads that changed it; all others have the default from the tool.
func emitTimerSlack(e *StateEmit) {
	if slack := image.GetTimerSlack(e.Thread.GetThreadCore()); slack != image.DefaultTimerSlack {
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_TIMERSLACK), remote.Imm(slack), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	}
}

// emitMembarrier registers again what the task had registered for.
func emitMembarrier(e *StateEmit) {
	for mask := e.Task.GetTc().GetMembarrierRegistrationMask(); mask != 0; mask &= mask - 1 {
		e.Call(unix.SYS_MEMBARRIER, remote.Imm(1<<bits.TrailingZeros32(mask)), remote.Imm(0), remote.Imm(0)).Must().Discard()
	}
}

// emitDumpable comes after every change of credentials, which resets it. A value that prctl does not take (2, from
// fs.suid_dumpable) is what such a change left, or the safe 0.
func emitDumpable(e *StateEmit) {
	if e.MM.Dumpable == nil {
		return
	}
	want := e.MM.GetDumpable()
	if want != 0 && want != 1 {
		now := e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_DUMPABLE), remote.Imm(0), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must()
		done := e.NewLabel()
		e.JumpIf(now, remote.Eq, remote.Imm(want), done)
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_DUMPABLE), remote.Imm(0), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
		e.Builder.Label(done)
		return
	}
	e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_DUMPABLE), remote.Imm(want), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
}
