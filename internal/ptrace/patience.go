package ptrace

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a thread that is waited for may do nothing at all: neither run nor wait for a disk, nor wake up in
// between. One that works may take as long as it does.
var patience = time.Minute

// deadPatience is how long that is with a thread that is dead: the end of a leader is reported only when its other threads have
// been waited for, which nobody will do meanwhile.
func deadPatience() time.Duration { return patience / 30 }

// StuckError says that a thread which was waited for does nothing that would ever end the wait.
type StuckError struct {
	TID   int
	For   time.Duration
	State string // its state and what it sleeps in, as /proc says
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("thread %d has neither stopped nor done anything else for %v (%s)", e.TID, e.For, e.State)
}

// waiter is a thread of this process and the wait it is in. A wait4 that is under way can only be ended from outside by a
// signal.
type waiter struct {
	self  int           // the thread
	tid   atomic.Int64  // whom it waits for, 0: nobody
	count atomic.Uint64 // of its waits: the number of the last one
	stuck atomic.Pointer[stuckWait]

	// What the watcher saw last, and since when.
	seen  uint64
	did   string
	since time.Time
}

// stuckWait is the wait with a number that is to end.
type stuckWait struct {
	count uint64
	err   *StuckError
}

var (
	waiters sync.Map // thread id to *waiter
	watcher = sync.OnceFunc(func() { go watch() })
)

// begin notes that the calling thread is going to wait for tid, until end. It costs next to nothing: waits are many, and
// what they wait for mostly comes within microseconds.
func begin(tid int) *waiter {
	self := unix.Gettid()
	v, ok := waiters.Load(self)
	if !ok {
		v, _ = waiters.LoadOrStore(self, &waiter{self: self})
		watcher()
	}
	w := v.(*waiter)
	w.count.Add(1)
	w.tid.Store(int64(tid))
	return w
}

func (w *waiter) end() { w.tid.Store(0) }

// givenUp is why the wait is to end, nil if it is not.
func (w *waiter) givenUp() error {
	if s := w.stuck.Load(); s != nil && s.count == w.count.Load() {
		return s.err
	}
	return nil
}

// watch looks at all waits again and again.
func watch() {
	for {
		pause := deadPatience()
		waiters.Range(func(_, v any) bool {
			if v.(*waiter).look() {
				pause = time.Millisecond // the signal may have come a moment before the wait began
			}
			return true
		})
		time.Sleep(pause)
	}
}

// look sees whether the thread that is waited for has done anything since the last look, and ends the wait when it has not
// for too long. It says whether it did.
func (w *waiter) look() bool {
	count, tid := w.count.Load(), int(w.tid.Load())
	if tid == 0 {
		return false
	}
	did, busy := activity(tid)
	if count != w.seen || busy || did != w.did {
		w.seen, w.did, w.since = count, did, time.Now()
		return false
	}
	idle := time.Since(w.since)
	if idle < bound(did) || w.count.Load() != count || w.tid.Load() == 0 {
		return false
	}
	w.stuck.Store(&stuckWait{count, &StuckError{TID: tid, For: idle.Round(time.Millisecond), State: did}})
	interruptible()
	unix.Tgkill(unix.Getpid(), w.self, wakeSignal)
	return true
}

// bound is how long a thread may go on doing what activity described.
func bound(did string) time.Duration {
	if strings.HasPrefix(did, "state Z") {
		return deadPatience()
	}
	return patience
}

// activity describes what a thread does, so that two descriptions are the same if it did nothing between them. It is busy
// when it runs or waits for a disk.
func activity(tid int) (description string, busy bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return err.Error(), false
	}
	var words []string
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); key {
		case "State":
			busy = value[:1] == "R" || value[:1] == "D"
			words = append(words, "state "+value)
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			words = append(words, key+" "+value)
		}
	}
	in, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", tid)) // empty, or 0, where the kernel does not tell
	return strings.Join(append(words, "in "+string(in)), ", "), busy
}

// wakeSignal ends waits. It is the last one, which nobody sends to a process that does not ask for it.
const wakeSignal = unix.Signal(64)

// interruptible makes wakeSignal interrupt system calls for good. The Go runtime has a handler for it that does nothing, but
// asks the kernel to start interrupted calls again.
var interruptible = sync.OnceFunc(func() {
	const saRestart = 0x10000000
	var act [4]uint64 // struct sigaction: handler, flags, then what we leave alone
	at := uintptr(unsafe.Pointer(&act))
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), 0, at, 8, 0, 0); e == 0 {
		act[1] &^= saRestart
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal), at, 0, 8, 0, 0)
	}
})
