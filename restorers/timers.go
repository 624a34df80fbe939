package restorers

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"golang.org/x/sys/unix"
)

const (
	timerRestoreIDs    = 77 // PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15)
	timerRestoreIDsOff = 0
	timerRestoreIDsOn  = 1
	sigevThreadID      = 4 // SIGEV_THREAD_ID, a bit upon the way of notifying
	sigevNone          = 1
	sizeofSigevent     = 64
	usecPerSec         = 1_000_000
	nsecPerSec         = 1_000_000_000
	itimerReal         = 0 // ITIMER_REAL
)

func checkIntervalTimers(e *StateEmit) error {
	t := e.Task.GetTc().GetTimers()
	if !e.Leader() || t == nil {
		return nil
	}
	for i, it := range []*timer.ItimerEntry{t.Real, t.Virt, t.Prof} {
		if it.GetIusec() >= usecPerSec || it.GetVusec() >= usecPerSec {
			return fmt.Errorf("timer %d has more than a second of microseconds", i)
		}
	}
	return nil
}

func emitIntervalTimers(e *StateEmit) {
	t := e.Task.GetTc().GetTimers()
	if t == nil {
		return
	}
	for which, it := range []*timer.ItimerEntry{t.Real, t.Virt, t.Prof} {
		if it.GetVsec() == 0 && it.GetVusec() == 0 && it.GetIsec() == 0 && it.GetIusec() == 0 {
			continue
		}
		sec, usec := it.GetVsec(), it.GetVusec()
		if which == itimerReal && sec == 0 && usec == 0 {
			// It stands still until the task takes the signal that is pending, and set to no time it would never go on.
			sec, usec = it.GetIsec(), it.GetIusec()
		}
		value := words(it.GetIsec(), it.GetIusec(), sec, usec)
		e.Call(unix.SYS_SETITIMER, remote.Imm(which), e.Bytes(value), remote.Imm(0)).Must().Discard()
	}
}

func words(list ...uint64) []byte {
	var b []byte
	for _, w := range list {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return b
}

func checkPosixTimers(e *StateEmit) error {
	if !e.Leader() {
		return nil
	}
	seen := map[uint32]bool{}
	for _, t := range e.Task.GetTc().GetTimers().GetPosix() {
		id := t.GetItId()
		if seen[id] {
			return fmt.Errorf("timer %d is there twice", id)
		}
		seen[id] = true
		if id >= 1<<31 {
			return fmt.Errorf("timer id %d is no timer's", id)
		}
		if t.GetInsec() >= nsecPerSec || t.GetVnsec() >= nsecPerSec {
			return fmt.Errorf("timer %d has more than a second of nanoseconds", id)
		}
		if sig := t.GetSiSigno(); t.GetItSigevNotify() != sigevNone && (sig < 1 || sig > numSignals) {
			return fmt.Errorf("timer %d sends signal %d", id, sig)
		}
	}
	return nil
}

// emitPosixTimers creates the timers with the ids they had. Linux 6.15 takes the id from the caller; before that ids
// count up in every task, so timers are made and deleted until the right one comes. It also listed the newest first.
func emitPosixTimers(e *StateEmit) {
	timers := slices.SortedFunc(slices.Values(e.Task.GetTc().GetTimers().GetPosix()), func(a, b *timer.PosixTimerEntry) int {
		return cmp.Compare(a.GetItId(), b.GetItId())
	})
	if len(timers) == 0 {
		return
	}
	count, done := e.NewLabel(), e.NewLabel()
	mode := e.Call(unix.SYS_PRCTL, remote.Imm(timerRestoreIDs), remote.Imm(timerRestoreIDsOn), remote.Imm(0), remote.Imm(0), remote.Imm(0))
	e.JumpIf(mode, remote.Ne, remote.Imm(0), count)
	for _, t := range timers {
		e.createTimer(t).Must().Discard()
	}
	e.Call(unix.SYS_PRCTL, remote.Imm(timerRestoreIDs), remote.Imm(timerRestoreIDsOff), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	e.Jump(done)
	e.Builder.Label(count)
	for _, t := range timers {
		e.countToTimer(t)
	}
	e.Builder.Label(done)
	for _, t := range timers {
		if t.GetVsec() == 0 && t.GetVnsec() == 0 {
			continue
		}
		value := e.Bytes(words(t.GetIsec(), t.GetInsec(), t.GetVsec(), t.GetVnsec()))
		e.Call(unix.SYS_TIMER_SETTIME, remote.Imm(t.GetItId()), remote.Imm(0), value, remote.Imm(0)).Must().Discard()
	}
}

// createTimer makes one timer; with the restore mode on the id is read from where the kernel puts it otherwise.
func (e *StateEmit) createTimer(t *timer.PosixTimerEntry) remote.Op {
	return e.Call(unix.SYS_TIMER_CREATE, remote.Imm(int32(t.GetClockId())), e.Bytes(e.sigevent(t)),
		e.InOut(binary.NativeEndian.AppendUint32(nil, t.GetItId())))
}

// countToTimer makes timers, and deletes each that comes too early.
func (e *StateEmit) countToTimer(t *timer.PosixTimerEntry) {
	again, made := e.NewLabel(), e.NewLabel()
	id := e.Zero(8)
	e.Builder.Label(again)
	e.Call(unix.SYS_TIMER_CREATE, remote.Imm(int32(t.GetClockId())), e.Bytes(e.sigevent(t)), id).Must().Discard()
	e.JumpIf(remote.Mem(id), remote.Eq, remote.Imm(t.GetItId()), made)
	e.Call(unix.SYS_TIMER_DELETE, remote.Mem(id)).Must().Discard()
	e.JumpIf(remote.Mem(id), remote.Below, remote.Imm(t.GetItId()), again)
	// Past it: the id is taken. Nothing can be set on a timer that is not there, so its settime says so.
	e.Builder.Label(made)
}

// sigevent is the kernel's struct sigevent.
func (e *StateEmit) sigevent(t *timer.PosixTimerEntry) []byte {
	b := make([]byte, sizeofSigevent)
	binary.NativeEndian.PutUint64(b, t.GetSivalPtr())
	binary.NativeEndian.PutUint32(b[8:], t.GetSiSigno())
	binary.NativeEndian.PutUint32(b[12:], t.GetItSigevNotify())
	if t.GetItSigevNotify()&sigevThreadID != 0 {
		tid := uint32(t.GetNotifyThreadId())
		if tid == 0 {
			tid = uint32(e.PID)
		}
		binary.NativeEndian.PutUint32(b[16:], tid)
	}
	return b
}
