package ptrace

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Event stops x/sys does not name.
const (
	EventStop = 128 // PTRACE_EVENT_STOP: interrupted, group-stopped, or just born under trace
)

// Status is what a wait reported about one thread.
type Status struct {
	TID int
	unix.WaitStatus
}

// Event is the PTRACE_EVENT_* of the stop, 0 when it is none.
func (s Status) Event() int {
	if !s.Stopped() {
		return 0
	}
	return int(s.WaitStatus) >> 16
}

// SyscallStop says whether the thread stopped at a system call under OptSysGood.
func (s Status) SyscallStop() bool {
	return s.Stopped() && s.StopSignal() == syscall.SIGTRAP|0x80
}

// Gone says whether the thread has ended.
func (s Status) Gone() bool { return s.Exited() || s.Signaled() }

func (s Status) String() string {
	switch {
	case s.Exited():
		return fmt.Sprintf("thread %d exited with %d", s.TID, s.ExitStatus())
	case s.Signaled():
		return fmt.Sprintf("thread %d was killed by %v", s.TID, s.Signal())
	case s.SyscallStop():
		return fmt.Sprintf("thread %d stopped at a system call", s.TID)
	case s.Event() != 0:
		return fmt.Sprintf("thread %d stopped with event %d, signal %v", s.TID, s.Event(), s.StopSignal())
	case s.Stopped():
		return fmt.Sprintf("thread %d stopped with signal %v", s.TID, s.StopSignal())
	}
	return fmt.Sprintf("thread %d reported status %#x", s.TID, int(s.WaitStatus))
}

// Wait waits for the next stop or the end of one tracee. The error is a *StuckError if that is not to be expected any more. __WALL sees threads and children with any exit signal,
// __WNOTHREAD only what belongs to the calling thread, so that nobody else's children are reaped.
func Wait(tid int) (Status, error) {
	return wait(tid)
}

// Poll is Wait that does not sleep; ok tells whether there was something to report.
func Poll(tid int) (s Status, ok bool, err error) {
	s, err = wait4(tid, unix.WNOHANG)
	return s, s.TID != 0, err
}

// Pauser makes the pauses between looks, by Poll, at a thread that is about to stop: none at first, because most stop within
// microseconds, then longer and longer ones. It sleeps on the calling thread: time.Sleep takes a millisecond at least when
// nothing else goes on in this process, and a thread that stops meanwhile stands still for nothing. The zero value is ready.
type Pauser struct {
	looks int
	last  time.Duration
}

// quickLooks is after how many looks a Pauser sleeps, which is some tens of microseconds. A thread that waits for this
// processor stops only when it gets it.
const quickLooks = 50

// firstNap is how long a Pauser sleeps at first.
const firstNap = 20 * time.Microsecond

// Pause waits, at most as long as limit, and returns how long it was to be; a signal may have ended it.
func (p *Pauser) Pause(limit time.Duration) time.Duration {
	if p.looks++; p.looks <= quickLooks {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // to whom it is, if it is to stop on this processor
		return 0
	}
	p.last = min(max(2*p.last, firstNap), limit)
	ts := unix.NsecToTimespec(int64(p.last))
	unix.Nanosleep(&ts, nil)
	return p.last
}

// WaitAny waits for the next stop or end of any tracee or child of the calling thread, however long that takes.
func WaitAny() (Status, error) {
	for {
		if s, err := wait4(-1, 0); !errors.Is(err, unix.EINTR) {
			return s, err
		}
	}
}

// wait waits for one thread, but not for ever: see patience.
func wait(tid int) (Status, error) { return waitPatiently(tid, tid) }

// WaitAnyOf is WaitAny, but does not go on for ever when tid, one of those who are waited for, does nothing: see patience.
func WaitAnyOf(tid int) (Status, error) { return waitPatiently(-1, tid) }

func waitPatiently(who, tid int) (Status, error) {
	w := begin(tid)
	defer w.end()
	for {
		s, err := wait4(who, 0)
		if !errors.Is(err, unix.EINTR) {
			return s, err
		}
		if err := w.givenUp(); err != nil {
			return s, err
		}
	}
}

func wait4(tid, flags int) (Status, error) {
	var ws unix.WaitStatus
	got, err := unix.Wait4(tid, &ws, unix.WALL|unix.WNOTHREAD|flags, nil)
	if err != nil {
		return Status{TID: tid}, fmt.Errorf("wait for thread %d: %w", tid, err)
	}
	return Status{got, ws}, nil
}

// Stop interrupts a seized thread and waits until it has stopped. Signals that arrive first are handed on to the
// thread; the status is that of the stop, a group-stop if the thread is in one.
func Stop(tid int) (Status, error) {
	if err := Interrupt(tid); err != nil {
		return Status{}, err
	}
	return AwaitStop(tid)
}

// AwaitStop waits for the stop an Interrupt asked for. To stop many threads, Interrupt all of them before the first
// AwaitStop.
func AwaitStop(tid int) (Status, error) {
	for {
		s, err := Wait(tid)
		if err != nil {
			return s, err
		}
		if s.Gone() {
			return s, fmt.Errorf("%v: %w", s, unix.ESRCH)
		}
		if s.Event() == EventStop {
			return s, nil
		}
		sig := s.StopSignal()
		if s.Event() != 0 || s.SyscallStop() {
			sig = 0
		}
		if err := Cont(tid, sig); err != nil {
			return s, err
		}
	}
}
