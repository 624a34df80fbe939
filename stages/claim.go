package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A run that works on a tree claims it, so that the next one waits for its end, and also for what the guardian takes back
// after a run that was killed. The claim is a lock (flock) on the list of descriptors of the tree's root in /proc: it is on
// the task itself, leaves nothing behind, and only who may look into the task can have it.

// claim is the lock, and the guardian's record to hold it as long as there is something to be taken back.
type claim struct{ dir *os.File }

// UndoKind implements pipeline.UndoRecord.
func (*claim) UndoKind() string { return "claim" }

// Descriptors implements guardian.Holder.
func (c *claim) Descriptors() []*os.File { return []*os.File{c.dir} }

// doClaim does nothing: the claim ends with the guardian, which has held the lock.
func doClaim(context.Context, json.RawMessage, []int) error { return nil }

// claimTree claims the tree for this dump, and for what the guardian would take back after it.
func (d *dumper) claimTree(ctx context.Context) (err error) {
	if d.claim, err = claimTree(ctx, d.o.Tree); err != nil || d.claim == nil {
		return err
	}
	return d.pushUndo("claim the tree", func(context.Context) error { return nil }, d.claim)
}

// claimPatience is how long a run waits for another one on the same tree.
const claimPatience = 10 * time.Second

// claimTree waits until no other run works on the tree of a task, and keeps others off until the claim is released. A task
// that cannot be claimed, because it has ended or may not be looked into, has no claim: nil.
func claimTree(ctx context.Context, root int) (*claim, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", root))
	if err != nil {
		return nil, nil
	}
	end := time.Now().Add(claimPatience)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		switch err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return &claim{dir}, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			dir.Close()
			return nil, nil
		case time.Now().After(end):
			dir.Close()
			return nil, fmt.Errorf("another dump is at work on task %d (or what a killed one has left is still being taken back): try again when it has ended", root)
		}
		select {
		case <-ctx.Done():
			dir.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// release lets the next run on the tree begin. The guardian's copy of the lock is the same lock.
func (c *claim) release() {
	if c != nil {
		unix.Flock(int(c.dir.Fd()), unix.LOCK_UN)
		c.dir.Close()
	}
}
