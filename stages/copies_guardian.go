package stages

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"time"

	"cryo/internal/procfs"
	"cryo/internal/ptrace"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// endCopies ends copy-on-write copies of tasks, and makes the tasks reap them.
type endCopies struct {
	Tasks  []copiedTask // whose copies are to be looked for
	Copies []copyID
}

// copiedTask is a task of which there may be a copy: a child that is none of those known, with the engine in it.
type copiedTask struct {
	taskID
	Children []int
}

// copyID is a copy, the task it is a child of, and its pid as that task sees it.
type copyID struct {
	taskID
	Of, VPid int
}

// UndoKind implements pipeline.UndoRecord.
func (endCopies) UndoKind() string { return "end-copies" }

func doEndCopies(ctx context.Context, data json.RawMessage, _ []int) error {
	var r endCopies
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	var errs []error
	for _, t := range r.Tasks {
		found, err := t.copies(ctx)
		errs = append(errs, err)
		r.Copies = append(r.Copies, found...)
	}
	for _, c := range r.Copies {
		errs = append(errs, c.end(ctx))
	}
	return errors.Join(errs...)
}

// copies looks for copies of a task, when it is sure that none is being made.
func (t copiedTask) copies(ctx context.Context) (list []copyID, err error) {
	start, err := startTime(t.Pid)
	if errors.Is(gone(err), fs.ErrNotExist) || err == nil && start != t.Start {
		return nil, nil
	}
	if err == nil {
		err = remote.Evict(ctx, t.Pid)
	}
	if err != nil {
		return nil, err
	}
	dir, err := procfs.OpenTask(t.Pid)
	if err != nil {
		return nil, gone(err)
	}
	defer dir.Close()
	threads, err := dir.Threads()
	if err != nil {
		return nil, err
	}
	children, err := dir.Children(threads)
	if err != nil {
		return nil, err
	}
	for _, pid := range children {
		if slices.Contains(t.Children, pid) {
			continue
		}
		c := copyID{taskID: taskID{Pid: pid}, Of: t.Pid}
		is, err := isOrphan(pid)
		if err == nil && is {
			err = c.identify()
		}
		if err = gone(err); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if is && err == nil {
			list = append(list, c)
		}
	}
	return list, nil
}

// isOrphan says whether a task is a copy whose tracer has died. One that has a tracer belongs to another dump.
func isOrphan(pid int) (bool, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	status, err := dir.Status()
	if err != nil || status.TracerPid != 0 {
		return false, err
	}
	return remote.HasEngine(pid)
}

// identify completes a copy of which the pid is known.
func (c *copyID) identify() (err error) {
	if c.Start, err = startTime(c.Pid); err != nil {
		return err
	}
	theirs, err := nsPids(c.Pid)
	if err != nil {
		return err
	}
	of, err := nsPids(c.Of)
	if err != nil {
		return err
	}
	c.VPid = theirs[len(of)-1]
	return nil
}

// nsPids are the pids of a task in all namespaces it has one in, from the tool's on.
func nsPids(pid int) ([]int, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	status, err := dir.Status()
	if err != nil {
		return nil, err
	}
	if len(status.NSpid) == 0 {
		return []int{pid}, nil
	}
	return status.NSpid, nil
}

// end ends a copy, if it is still there, dead or alive.
func (c copyID) end(ctx context.Context) error {
	start, err := startTime(c.Pid)
	if errors.Is(gone(err), fs.ErrNotExist) || err == nil && start != c.Start {
		return nil
	}
	if err == nil {
		err = c.kill()
	}
	if err == nil {
		err = awaitZombie(ctx, c.Pid)
	}
	if err == nil {
		err = remote.Evict(ctx, c.Of) // nothing runs in it that a program has been put into
	}
	if err != nil {
		return err
	}
	t := ptrace.NewTracer()
	defer t.Close()
	return t.Do(func() error { return remote.Reap(ctx, c.Of, c.VPid) })
}

// awaitZombie waits until a task that was killed is dead.
func awaitZombie(ctx context.Context, pid int) error {
	for {
		dir, err := procfs.OpenTask(pid)
		if err != nil {
			return nil
		}
		stat, err := dir.Stat()
		dir.Close()
		if errors.Is(err, unix.ESRCH) || err == nil && (stat.State == 'Z' || stat.State == 'X') {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
