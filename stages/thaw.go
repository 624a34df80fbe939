package stages

import (
	"errors"
	"fmt"
	"slices"

	"cryo/collectors"
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

// reap waits until the threads of all tasks, which have been killed, have gone.
func (f *freezer) reap() {
	for _, t := range f.tasks {
		if t != f.root {
			reapTask(t)
		}
	}
	reapTask(f.root) // the init of a pid namespace ends after all others in there
	clear(f.stopped)
}

// reapTask waits for the end of a task. That of a leader is reported only when all other threads have been waited for.
func reapTask(t *collectors.Task) {
	for _, tid := range t.Workers {
		reap(tid)
	}
	for _, th := range slices.Backward(t.Threads) {
		reap(th.Tid)
	}
}

// reap waits for the end of a traced thread that has been killed.
func reap(tid int) {
	for {
		if status, err := ptrace.Wait(tid); err != nil || status.Gone() {
			return // reaped here, or by its parent
		}
	}
}
