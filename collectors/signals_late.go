package collectors

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"google.golang.org/protobuf/proto"
)

// Timers run on while a task stands still. One that expires after the queues of signals were read, and before it was asked
// for the time it has left, would be in neither; so the queues are read again afterwards.

// lateSignals takes in what has become pending since traceSignals. asked is when the timers began to be asked.
func lateSignals(t *Task, asked time.Time) error {
	shared, err := newlyPending(t, t.Pid, true, &t.Core.Tc.SignalsS)
	if err != nil {
		return err
	}
	late := time.Since(asked)
	real := t.Core.Tc.Timers.Real
	alarm := func(signo, _ int32, _ uint32) bool { return signo == sigAlarm }
	if hasSignal(shared, alarm) && expired(late, real.GetIsec(), real.GetIusec(), real.GetVsec(), 1000*real.GetVusec()) {
		real.Vsec, real.Vusec = proto.Uint64(0), proto.Uint64(0)
	}
	for i, p := range t.posixTimers {
		fresh := shared
		if p.Thread {
			th := t.thread(p.Tid)
			if th == nil {
				continue
			}
			if fresh, err = newlyPending(t, p.Tid, false, &th.Core.ThreadCore.SignalsP); err != nil {
				return err
			}
		}
		e := t.Core.Tc.Timers.Posix[i]
		own := func(_, code int32, timer uint32) bool { return code == siTimer && timer == uint32(p.ID) }
		if hasSignal(fresh, own) && expired(time.Since(asked), e.GetIsec(), e.GetInsec(), e.GetVsec(), e.GetVnsec()) {
			e.Vsec, e.Vnsec = proto.Uint64(0), proto.Uint64(0)
		}
	}
	return nil
}

const (
	sigAlarm = 14 // SIGALRM
	siTimer  = -2 // SI_TIMER
)

// newlyPending reads a queue once more, and returns what it did not hold the first time.
func newlyPending(t *Task, tid int, shared bool, known **siginfo.SignalQueueEntry) ([]*siginfo.SiginfoEntry, error) {
	queue, err := pendingSignals(tid, shared, ^uint64(0))
	if err != nil {
		return nil, err
	}
	if t.State == Stopped {
		dropStops(queue)
	}
	fresh := slices.Clone(queue.Signals)
	for _, old := range (*known).GetSignals() {
		if i := slices.IndexFunc(fresh, func(e *siginfo.SiginfoEntry) bool { return slices.Equal(e.Siginfo, old.Siginfo) }); i >= 0 {
			fresh = slices.Delete(fresh, i, i+1)
		}
	}
	*known = queue
	return fresh, nil
}

// hasSignal says whether one of some signals is the one; its number, code and, with SI_TIMER, timer are given.
func hasSignal(list []*siginfo.SiginfoEntry, is func(signo, code int32, timer uint32) bool) bool {
	return slices.ContainsFunc(list, func(e *siginfo.SiginfoEntry) bool {
		word := func(at int) uint32 { return binary.NativeEndian.Uint32(e.Siginfo[at:]) }
		return is(int32(word(0)), int32(word(8)), word(16))
	})
}

// expired says whether a timer that fires once, and had some time left when it was asked, has fired within the time since:
// its signal is pending now, and it must not fire again.
func expired(since time.Duration, intervalSec, interval, sec, nsec uint64) bool {
	return intervalSec == 0 && interval == 0 && sec < 1<<32 && time.Duration(sec)*time.Second+time.Duration(nsec) <= since
}
