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

// Evict removes what package remote has left in a task. Record it before the first program is injected; the engine is
// found by what it looks like, so its address need not be known.
type Evict struct {
	PID       int
	StartTime uint64 // in clock ticks since boot, so that nobody else is taken for the task
}

// UndoKind implements Record.
func (Evict) UndoKind() string { return "evict" }

func evict(ctx context.Context, data json.RawMessage, fds []int) error {
	var r Evict
	if err := decode(data, &r, fds, 0); err != nil {
		return err
	}
	dir, err := procfs.OpenTask(r.PID)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	st, err := dir.Stat()
	if errors.Is(err, unix.ESRCH) || err == nil && st.StartTime != r.StartTime {
		return nil
	}
	if err == nil {
		err = remote.Evict(ctx, r.PID)
	}
	if err != nil {
		return fmt.Errorf("task %d: %w", r.PID, err)
	}
	return nil
}
