package stages

import (
	"context"
	"errors"
	"io/fs"

	"cryo/collectors"
)

// stopDown stops a tree from its root down. Who are the children of a task, and what its threads, is asked only when it
// stands still and makes no more of them, so most tasks are looked at once. What may still be missing after that, because
// it was given to another parent meanwhile, list finds.
func (f *freezer) stopDown(ctx context.Context, root *collectors.Task) error {
	for level := []*collectors.Task{root}; len(level) > 0; {
		for _, t := range level {
			if err := f.interrupt(t, t.Pid); err != nil {
				return err
			}
		}
		var next []*collectors.Task
		for _, t := range level {
			if err := f.stopWhole(ctx, t); err != nil {
				return err
			}
			children, err := f.childrenOf(t)
			if err != nil {
				return err
			}
			next = append(next, children...)
		}
		level = next
	}
	return nil
}

// stopWhole waits until all threads of a task stand still whose leader was interrupted.
func (f *freezer) stopWhole(ctx context.Context, t *collectors.Task) error {
	for {
		if _, err := f.awaitTask(ctx, t); err != nil || !t.Live() || f.tasks[t.Pid] != t {
			return err
		}
		stat, err := t.Proc.Stat()
		if err = gone(err); errors.Is(err, fs.ErrNotExist) {
			return f.drop(t)
		}
		if err != nil {
			return err
		}
		known := len(t.Threads)
		if stat.Threads != known {
			if err := f.interruptThreads(t); err != nil {
				return err
			}
		}
		if len(t.Threads) == known { // the others, if any, are dead and not yet gone
			t.Stat = stat
			return nil
		}
	}
}

// interruptThreads interrupts the threads of a task that are not known yet.
func (f *freezer) interruptThreads(t *collectors.Task) error {
	tids, err := t.Proc.Threads()
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return f.drop(t)
	}
	for _, tid := range tids {
		if err == nil {
			err = f.interrupt(t, tid)
		}
	}
	return err
}

// childrenOf takes in the children of a task that stands still.
func (f *freezer) childrenOf(t *collectors.Task) (children []*collectors.Task, err error) {
	if !t.Live() || f.tasks[t.Pid] != t {
		return nil, nil
	}
	tids := make([]int, len(t.Threads))
	for i, th := range t.Threads {
		tids[i] = th.Tid
	}
	pids, err := t.Proc.Children(tids)
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return nil, f.drop(t)
	}
	if err != nil {
		return nil, err
	}
	f.settled[t] = len(pids) == 0
	for _, pid := range pids {
		if f.tasks[pid] != nil { // it has changed its parent: list sees to that
			continue
		}
		child, err := f.add(pid, t)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t.Children = append(t.Children, child)
		children = append(children, child)
	}
	return children, nil
}
