package guardian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cryo/internal/procfs"
	"cryo/internal/remote"
)

// Evict removes what package remote has left in tasks. Record it before the first program is injected; the engine is
// found by what it looks like, so its address need not be known.
type Evict struct{ Tasks []Task }

// Task names a task whose pid may be somebody else's by the time it is used.
type Task struct {
	PID       int
	StartTime uint64 // in clock ticks since boot
}

// UndoKind implements Record.
func (Evict) UndoKind() string { return "evict" }

func evict(ctx context.Context, data json.RawMessage, fds []int) error {
	var r Evict
	if err := decode(data, &r, fds, 0); err != nil {
		return err
	}
	return eachTask(r.Tasks, func(t Task) error { return remote.Evict(ctx, t.PID) })
}

// eachTask does the same for every task that is still there; one that fails does not spare the others.
func eachTask(tasks []Task, do func(Task) error) error {
	var errs []error
	for _, t := range tasks {
		there, err := t.exists()
		if there && err == nil {
			err = do(t)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("task %d: %w", t.PID, err))
		}
	}
	return errors.Join(errs...)
}

// exists says whether the task is still there and the same.
func (t Task) exists() (bool, error) {
	dir, err := procfs.OpenTask(t.PID)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	st, err := dir.Stat()
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	return err == nil && st.StartTime == t.StartTime, err
}
