package stages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cryo/collectors"
	"cryo/internal/objid"
	"cryo/internal/ptrace"

	"golang.org/x/sys/unix"
)

// awaitAll waits for every thread that was interrupted.
func (f *freezer) awaitAll(ctx context.Context) error {
	for again := true; again; {
		again = false
		for _, t := range f.tasks {
			waited, err := f.awaitTask(ctx, t)
			if err != nil {
				return err
			}
			again = again || waited
		}
	}
	return nil
}

// awaitTask waits for the threads of a task that have not stopped yet; it says whether there were any.
func (f *freezer) awaitTask(ctx context.Context, t *collectors.Task) (waited bool, err error) {
	for i := 0; i < len(t.Threads); i++ {
		th := t.Threads[i]
		if f.stopped[th.Tid] {
			continue
		}
		waited = true
		status, err := f.await(ctx, t, th.Tid)
		if errors.Is(err, unix.ESRCH) {
			t.Threads = slices.Delete(t.Threads, i, i+1)
			i--
			continue
		}
		if err != nil {
			return waited, err
		}
		f.stopped[th.Tid] = true
		if th.Tid != t.Pid && kernelWorker(t, th.Tid) {
			t.Threads = slices.Delete(t.Threads, i, i+1)
			t.Workers = append(t.Workers, th.Tid)
			i--
			continue
		}
		if sig := status.StopSignal(); sig != syscall.SIGTRAP {
			t.State, t.StopSignal = collectors.Stopped, int(sig)
		}
	}
	if len(t.Threads) == 0 && t.State != collectors.Dead {
		return waited, f.reexamine(t)
	}
	return waited, nil
}

// vforkPatience is after what time a thread that does not stop is suspected to wait for a vfork child.
const vforkPatience = 2 * time.Millisecond

// await waits for one thread. Signals that are delivered before the stop are handed on.
func (f *freezer) await(ctx context.Context, t *collectors.Task, tid int) (ptrace.Status, error) {
	released := map[int]bool{}
	defer func() {
		for child := range released {
			ptrace.Interrupt(child) // one that has ended is found out by its own await
		}
	}()
	var pauser ptrace.Pauser
	for {
		status, ok, err := ptrace.Poll(tid)
		if errors.Is(err, unix.ECHILD) {
			return status, unix.ESRCH
		}
		if err != nil {
			return status, err
		}
		if ok {
			stopped, err := settle(status)
			if stopped || err != nil {
				return status, err
			}
			continue
		}
		if ctx.Err() != nil {
			return status, context.Cause(ctx)
		}
		if time.Now().After(f.deadline) {
			return status, fmt.Errorf("thread %d does not stop (%s): try again later, or give more time with --timeout", tid, whyNot(t, tid))
		}
		if pauser.Pause(vforkPatience) == vforkPatience {
			f.releaseVfork(t, released)
		}
	}
}

// releaseVfork lets the vfork children of a task run. Until such a child calls exec or exits its parent sleeps where no
// interrupt reaches it. Those let go are added to the set; they are interrupted again when the parent has stopped.
func (f *freezer) releaseVfork(t *collectors.Task, released map[int]bool) {
	for _, child := range t.Children {
		for _, th := range child.Threads {
			if !released[th.Tid] {
				same, err := objid.Same(objid.VM, objid.Ref{Pid: t.Pid}, objid.Ref{Pid: child.Pid})
				if err != nil || !same {
					break
				}
			}
			if !f.stopped[th.Tid] {
				// Its interrupt may still be on the way.
				if s, ok, err := ptrace.Poll(th.Tid); err != nil || !ok || s.Gone() {
					continue
				} else if stopped, err := settle(s); !stopped || err != nil {
					continue
				}
			}
			if ptrace.Cont(th.Tid, 0) == nil {
				f.stopped[th.Tid] = false
				delete(f.settled, child)
				released[th.Tid] = true
			}
		}
	}
}

// settle says whether a status is the stop that was asked for, and lets the thread go on if it is not.
func settle(s ptrace.Status) (bool, error) {
	if s.Gone() {
		return false, unix.ESRCH
	}
	if s.Event() == ptrace.EventStop {
		return true, nil
	}
	sig := s.StopSignal()
	if s.Event() != 0 || s.SyscallStop() {
		sig = 0
	}
	return false, ptrace.Cont(s.TID, sig)
}

// reexamine looks at a task without threads: a zombie or gone.
func (f *freezer) reexamine(t *collectors.Task) error {
	stat, err := t.Proc.Stat()
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return f.drop(t)
	}
	if err != nil {
		return err
	}
	t.Stat = stat
	if stat.State == 'Z' {
		t.State = collectors.Dead
	}
	return nil
}

// drop forgets a task that has ended and been reaped.
func (f *freezer) drop(t *collectors.Task) error {
	if t == f.root {
		return fmt.Errorf("task %d ended while it was being stopped", t.Pid)
	}
	delete(f.tasks, t.Pid)
	if t.Parent != nil {
		t.Parent.Children = slices.DeleteFunc(t.Parent.Children, func(c *collectors.Task) bool { return c == t })
	}
	t.Close()
	return nil
}

// whyNot says what may keep a thread of a task from stopping.
func whyNot(t *collectors.Task, tid int) string {
	shares := func(pid int) bool {
		same, err := objid.Same(objid.VM, objid.Ref{Pid: t.Pid}, objid.Ref{Pid: pid})
		return err == nil && same
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", t.Pid, tid)) // of which some may not be known yet
	for _, word := range strings.Fields(string(children)) {
		if child, err := strconv.Atoi(word); err == nil && shares(child) {
			return fmt.Sprintf("it may wait for task %d, made by vfork, to call exec or to end", child)
		}
	}
	if t.Parent != nil && shares(t.Parent.Pid) {
		return fmt.Sprintf("task %d may wait for it, made by vfork, to call exec or to end", t.Parent.Pid)
	}
	at, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", tid))
	if err == nil && strings.Contains(string(at), "userfault") {
		return "it waits for an event to be read from a userfaultfd"
	}
	return "it may be in uninterruptible sleep"
}
