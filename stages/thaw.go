package stages

import (
	"errors"
	"fmt"
	"slices"

	"cryo/internal/ptrace"

	"golang.org/x/sys/unix"
)

// thaw lets all threads go that were seized, whether they have stopped or not.
func (f *freezer) thaw() error {
	var errs []error
	for tid, stopped := range f.stopped {
		if !stopped {
			if status, err := ptrace.Wait(tid); err != nil || status.Gone() {
				continue
			}
		}
		if err := ptrace.Detach(tid, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	clear(f.stopped)
	return errors.Join(errs...)
}

// stop lets all tasks go into a stop that SIGCONT ends.
func (f *freezer) stop() error {
	for _, t := range f.tasks {
		if t.Live() {
			if err := unix.Kill(t.Pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return f.thaw()
}

// kill ends all tasks.
func (f *freezer) kill() error {
	var errs []error
	for _, t := range f.tasks {
		if t.Live() {
			if err := unix.Kill(t.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("kill task %d: %w", t.Pid, err))
			}
		}
	}
	return errors.Join(errs...)
}

// reap waits until the threads of all tasks, which have been killed, have gone: in whatever order they do. The leader of a
// task ends after its other threads, and the last thread of a namespace's init after all else in there has been waited for.
func (f *freezer) reap() {
	var order []int // leaders come after their threads
	for _, t := range f.tasks {
		order = append(order, t.Workers...)
		for _, th := range slices.Backward(t.Threads) {
			order = append(order, th.Tid)
		}
	}
	gone := map[int]bool{}
	for _, tid := range order {
		for !gone[tid] {
			status, err := ptrace.WaitAnyOf(tid)
			if err != nil {
				break // reaped by its parent
			}
			gone[status.TID] = gone[status.TID] || status.Gone()
		}
	}
	clear(f.stopped)
}
