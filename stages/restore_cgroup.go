package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"cryo/internal/cgroup"
	"cryo/internal/guardian"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// groupedSet is a set whose control groups are there.
type groupedSet struct {
	*restorers.Set
	cgroups *restorers.Cgroups // nil: the tasks stay where the tool is
}

// makeGroups makes the control groups of the set. While one is there for nothing there is a guardian to take it away.
func (r *restorer) makeGroups(s *pipeline.Stage, set *restorers.Set) (*groupedSet, error) {
	c, err := restorers.ReadCgroups(set, r.o)
	if err != nil {
		return nil, err
	}
	r.cgroups = c
	return &groupedSet{set, c}, c.Prepare(func(change restorers.GroupChange) (func(), error) {
		var records []pipeline.UndoRecord
		switch {
		case change.Made != nil:
			records = append(records, removeGroup{Parent: change.Made.Parent, Name: change.Made.Name})
		case change.Wrote != nil:
			records = append(records, guardian.Write{File: change.Wrote.File, Text: change.Wrote.Was})
		}
		if len(records) > 0 {
			if err := r.startGuardian(); err != nil {
				return nil, err
			}
		}
		step, err := s.Undo().Push(change.Name, 0, change.Back, records...)
		return step.Done, err
	})
}

// bornIn opens the control group the root is cloned into; nil if that is the tool's own. The caller closes it.
func (r *restorer) bornIn(p *restorePlan) *os.File {
	dir, err := p.cgroups.BornIn(p.tree.Root)
	if err != nil {
		r.log.Debug("the root is moved to its control groups, not born there", "err", err)
	}
	return dir
}

// enterGroups moves processes that have just been made to their control groups.
func (r *restorer) enterGroups(p *restorePlan, level []*member) error {
	for _, m := range level {
		if m.Forker == nil && p.cgroups.Namespace() {
			if err := r.hideGroups(p, m); err != nil {
				return err
			}
		}
		if err := p.cgroups.Enter(m.Node, m.PID()); err != nil {
			return err
		}
	}
	return nil
}

// hideGroups gives the root a cgroup namespace: what it is in at that moment is what it sees as the roots.
func (r *restorer) hideGroups(p *restorePlan, m *member) error {
	if err := p.cgroups.EnterHidden(m.Node, m.PID()); err != nil {
		return err
	}
	return r.runAll([]*member{m}, "make a cgroup namespace", func(_ *member, b *remote.Builder) error {
		b.Call(unix.SYS_UNSHARE, remote.Imm(unix.CLONE_NEWCGROUP)).Must()
		return nil
	})
}

// enterThreadGroups moves threads that are in other groups than their leaders.
func (r *restorer) enterThreadGroups(f *family, some []*member) error {
	for _, m := range some {
		for i, th := range m.threads {
			if err := f.cgroups.EnterThread(m.Node, m.Threads[1+i], th.TID); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeGroup removes a control group that a restore has made.
type removeGroup struct {
	Parent *os.File `json:"-"`
	Name   string
}

// UndoKind implements pipeline.UndoRecord.
func (removeGroup) UndoKind() string { return "remove-cgroup" }

// Descriptors implements guardian.Holder.
func (r removeGroup) Descriptors() []*os.File { return []*os.File{r.Parent} }

func doRemoveGroup(ctx context.Context, data json.RawMessage, fds []int) error {
	var r removeGroup
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if len(fds) != 1 {
		return errors.New("remove-cgroup: the record came without its directory")
	}
	// The descriptor stays the guardian's.
	fd, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove-cgroup: %w", err)
	}
	parent := os.NewFile(uintptr(fd), "")
	defer parent.Close()
	return cgroup.Remove(ctx, parent, r.Name)
}
