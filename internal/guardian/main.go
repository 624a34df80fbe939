package guardian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"cryo/internal/selfexec"

	"golang.org/x/sys/unix"
)

// The descriptors a guardian is started with, besides its log on 2.
const (
	sockFD = 3
	wardFD = 4 // pidfd
)

// doBound is how long one record may take.
const doBound = 10 * time.Second

// available is whether this executable can be a guardian.
var available atomic.Bool

// Available says whether Main has been called, so that Start starts a guardian and not something else.
func Available() bool { return available.Load() }

// Main makes this process a guardian, and does not return, if it was started as one; else it does nothing. Call it first
// thing in main. The guardian knows the given kinds besides those of this package; no two have the same name.
func Main(kinds ...Kind) {
	all := append(slices.Clone(builtin), kinds...)
	for i, k := range all {
		if slices.ContainsFunc(all[:i], func(other Kind) bool { return other.Name == k.Name }) {
			panic("guardian: two kinds of record are called " + k.Name)
		}
	}
	available.Store(true)
	if !selfexec.Is(argv0) {
		return
	}
	if t, err := unix.GetsockoptInt(sockFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_SEQPACKET {
		fmt.Fprintf(os.Stderr, "%s is started by criu itself, not by hand\n", argv0)
		os.Exit(2)
	}
	ignoreSignals()
	selfexec.Become(argv0, wardFD)
	j := &journal{kinds: all}
	j.listen()
	if !j.act() {
		os.Exit(1)
	}
	os.Exit(0)
}

// faults are the signals the kernel sends to a task for what it does itself. The Go runtime lets nobody block them.
var faults = []os.Signal{
	syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGSYS, syscall.SIGABRT, syscall.SIGSTKFLT,
}

// ignoreSignals ignores everything that ends or stops a process.
func ignoreSignals() {
	var all []os.Signal
	for s := syscall.Signal(1); s <= 64; s++ {
		switch {
		case slices.Contains(faults, os.Signal(s)):
		case s == syscall.SIGURG, s == syscall.SIGCHLD: // ignored by default; the runtime has its own use for them
		default:
			all = append(all, s)
		}
	}
	signal.Ignore(all...)
	// Package signal leaves these, which belong to C libraries, as they are: deadly.
	for _, s := range []uintptr{32, 34} {
		ign := [4]uint64{1} // struct sigaction with SIG_IGN
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&ign)), 0, 8, 0, 0)
	}
}

// journal is what a guardian knows.
type journal struct {
	kinds     []Kind
	records   []entry
	finishes  []entry
	committed bool
	failed    bool
}

type entry struct {
	message
	fds []int
}

// listen keeps the journal until the ward has closed it or has exited.
func (j *journal) listen() {
	poll := []unix.PollFd{{Fd: sockFD, Events: unix.POLLIN}, {Fd: wardFD, Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			j.log("poll: %v", err)
			return
		}
		exited := poll[1].Revents != 0
		switch j.read() {
		case opClose:
			return
		case endOfSocket:
			poll[0].Fd = -1 // the ward is about to exit; its pidfd says when it has
		}
		if exited {
			return
		}
	}
}

const endOfSocket = "end"

// read reads all messages that have come, and returns the operation that ends the journal if there is one.
func (j *journal) read() string {
	for {
		m, fds, err := receive(sockFD)
		var errno unix.Errno
		switch {
		case err == unix.EAGAIN:
			return ""
		case errors.As(err, &errno) || err == nil && m.Op == "":
			return endOfSocket
		case err != nil:
			j.log("%v", err)
			j.failed = true
			continue
		case m.Op == opClose:
			return opClose
		}
		j.take(m, fds)
	}
}

// take enters one message.
func (j *journal) take(m message, fds []int) {
	switch m.Op {
	case opRecord:
		j.records = append(j.records, entry{m, fds})
	case opFinish:
		j.finishes = append(j.finishes, entry{m, fds})
	case opForget:
		forget := func(e entry) bool {
			if e.ID == m.ID {
				closeAll(e.fds)
			}
			return e.ID == m.ID
		}
		j.records = slices.DeleteFunc(j.records, forget)
		j.finishes = slices.DeleteFunc(j.finishes, forget)
	case opCommit:
		for _, e := range j.records {
			closeAll(e.fds)
		}
		j.records, j.committed = nil, true
	default:
		j.log("unknown message %q", m.Op)
	}
}

// act does what is to be done when the ward is no more, and returns whether all of it was done.
func (j *journal) act() bool {
	for _, e := range slices.Backward(j.records) {
		j.do(e)
	}
	if j.committed {
		for _, e := range j.finishes {
			j.do(e)
		}
	}
	return !j.failed
}

func (j *journal) do(e entry) {
	i := slices.IndexFunc(j.kinds, func(k Kind) bool { return k.Name == e.Kind })
	err := errors.New("unknown kind of record")
	if i >= 0 {
		err = bounded(func(ctx context.Context) error { return j.kinds[i].Do(ctx, e.Data, e.fds) })
	}
	if err != nil {
		j.failed = true
		j.log("%s %s: %v", e.Kind, e.Data, err)
		return
	}
	j.log("%s %s: done", e.Kind, e.Data)
}

// bounded runs f, but not for ever.
func bounded(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), doBound)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(doBound + doBound/10):
		return fmt.Errorf("not done within %v", doBound)
	}
}

func (j *journal) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, argv0+": "+format+"\n", args...)
}
