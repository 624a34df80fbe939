package ptrace

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Tracer is one OS thread that owns a set of tracees. Every ptrace request and every wait for them is made inside Do.
// Clones made there are children of that thread: their parent-death signal follows it.
type Tracer struct {
	work  chan func()
	done  chan struct{}
	close sync.Once
}

// NewTracer starts a tracer. Its thread lives until Close, or to the end of the process.
func NewTracer() *Tracer {
	watcher() // here, and not when a task stands still for the start of a thread
	t := &Tracer{work: make(chan func()), done: make(chan struct{})}
	go t.loop()
	return t
}

// loop finds the tracer its thread. The first of a process will not do: it does not end with its goroutine, and would keep
// the tracees for as long as the process lives.
func (t *Tracer) loop() {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and tracees with OptExitKill with it
	if unix.Gettid() != os.Getpid() {
		t.serve()
		return
	}
	another := make(chan struct{})
	go func() {
		runtime.LockOSThread() // of another, as the first is taken
		close(another)
		t.serve()
	}()
	<-another
	runtime.UnlockOSThread()
}

func (t *Tracer) serve() {
	defer close(t.done)
	for f := range t.work {
		f()
	}
}

// ErrClosed is returned by Do after Close.
var ErrClosed = errors.New("the tracer has ended")

// Do runs f on the tracer's thread and returns what it returns. Calls of Do are served one after the other, so f does
// not wait for another Do of the same tracer. A panic in f is raised again in the caller.
func (t *Tracer) Do(f func() error) (err error) {
	var caught any
	finished := make(chan struct{})
	job := func() {
		defer close(finished)
		defer func() { caught = recover() }()
		err = f()
	}
	select {
	case <-t.done:
		return ErrClosed
	default:
	}
	if !t.send(job) {
		return ErrClosed
	}
	<-finished
	if caught != nil {
		panic(caught)
	}
	return err
}

func (t *Tracer) send(job func()) (ok bool) {
	defer func() { ok = recover() == nil }() // the channel was closed meanwhile
	t.work <- job
	return
}

// closePatience is how long Close waits for a job that was left behind.
const closePatience = 10 * time.Second

// Close ends the tracer's thread. Tracees it still has are let go by the kernel, or killed under OptExitKill. A job that
// was left behind and does not end keeps the thread until it does, or this process ends.
func (t *Tracer) Close() {
	t.close.Do(func() { close(t.work) })
	select {
	case <-t.done:
	case <-time.After(closePatience):
	}
}
