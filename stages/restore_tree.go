package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cryo/internal/nsenter"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// family is the tree of tasks while it is being made.
type family struct {
	*restorePlan
	members []*member // forkers before whom they fork
	byNode  map[*restorers.Node]*member
	late    map[*restorers.Node][]restorers.Range // where memory comes late
	kernel  []*restorers.Area                     // the areas the kernel made in the root
}

// member is one process under construction: stopped, and traced by the restore's tracer.
type member struct {
	*restorers.Node
	session *remote.Session
	threads []*remote.Thread // all but the leader
}

// PID is the process as the tool sees it.
func (m *member) PID() int { return m.session.Leader().Thread().TID }

// alive lists the members that are to live: no helpers and no zombies.
func (f *family) alive() []*member {
	var some []*member
	for _, m := range f.members {
		if !m.Helper() && !m.Dead() {
			some = append(some, m)
		}
	}
	return some
}

// forkTree makes all processes, level by level: those of one level map and fill what they have and then fork the next.
func (r *restorer) forkTree(s *pipeline.Stage, p *restorePlan) (*family, error) {
	defer r.stats.Forking.Start()()
	f := &family{restorePlan: p, byNode: map[*restorers.Node]*member{}, late: map[*restorers.Node][]restorers.Range{}}
	if err := r.hiddenFiles(s, p); err != nil {
		return nil, err
	}
	if err := p.files.After(s.Context(), restorers.Ready, nil); err != nil {
		return nil, err
	}
	if err := p.memfds.Prepare(s.Context()); err != nil {
		return nil, err
	}
	if err := p.sysv.Prepare(s.Context(), r.trackSegment(s)); err != nil {
		return nil, err
	}
	if err := r.openNet(p); err != nil {
		return nil, err
	}
	root, err := r.spawn(s, p)
	if err != nil {
		return nil, err
	}
	if err := r.announceNamespaces(s.Context(), p); err != nil {
		return nil, err
	}
	for level := []*member{root}; len(level) > 0; {
		if err := r.enterGroups(p, level); err != nil {
			return nil, err
		}
		if err := r.buildMemory(s, f, level); err != nil {
			return nil, err
		}
		var next []*member
		err := r.tracer.Do(func() error {
			for _, m := range level {
				children, err := r.fork(f, m)
				if err != nil {
					return fmt.Errorf("%s: %w", m.Node, err)
				}
				next = append(next, children...)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		f.members = append(f.members, level...)
		level = next
	}
	for _, m := range f.members {
		f.byNode[m.Node] = m
	}
	return f, r.joinGroups(f)
}

// spawn makes the root.
func (r *restorer) spawn(s *pipeline.Stage, p *restorePlan) (*member, error) {
	m := &member{Node: p.tree.Root}
	// What dies with the tool need not be undone if the tool is killed; if a stage fails, its tasks go first.
	if _, err := s.Undo().Push("kill the tasks made so far", 0, func(context.Context) error { return r.kill() }); err != nil {
		return nil, err
	}
	o := remote.SpawnOptions{TID: []int{m.ID}, Flags: p.cloneFlags(), Hole: p.hole, Slots: p.slots, SlotSize: restoreSlotSize}
	if r.o.Sibling {
		o.Flags |= unix.CLONE_PARENT
	}
	if dir := r.bornIn(p); dir != nil {
		defer dir.Close()
		o.Cgroup = int(dir.Fd())
	}
	err := r.tracer.Do(func() (err error) {
		back, err := nsenter.Hop(r.net) // it is born where the tracer's thread is
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, back()) }()
		if m.session, err = remote.Spawn(o); errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("pid %d is taken: %w", m.ID, err)
		} else if err != nil && o.Cgroup != 0 { // it will be moved
			o.Cgroup = 0
			m.session, err = remote.Spawn(o)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if o.Cgroup != 0 {
		p.cgroups.Born()
	}
	r.root = m.PID()
	m.Host = r.root
	r.deathSignal = slices.ContainsFunc(m.Threads, func(th *restorers.Thread) bool { return th.Core.GetThreadCore().GetPdeathSig() != 0 })
	r.made.add(r.root)
	r.scripts.SetInit(r.root)
	return m, r.furnish(s, p, m)
}

// kill ends all tasks made so far and waits until they are gone, so that their pids are free again.
func (r *restorer) kill() error {
	return r.tracer.Do(func() error {
		r.made.kill()
		// The tracer has no other children. A leader is not gone before its threads have been waited for. A task whose
		// forker was killed before it could tell of the fork is met here for the first time, at its birth.
		for {
			st, err := ptrace.WaitAny()
			if errors.Is(err, unix.ECHILD) {
				return nil
			}
			if err != nil {
				return err
			}
			if !st.Gone() {
				unix.Kill(st.TID, unix.SIGKILL)
			}
		}
	})
}

// fork makes the children of a member, those born in its old session first.
func (r *restorer) fork(f *family, m *member) ([]*member, error) {
	var children []*member
	clone := func(nodes []*restorers.Node) error {
		if len(nodes) == 0 {
			return nil
		}
		list := make([]remote.Child, len(nodes))
		for i, n := range nodes {
			list[i] = f.child(m.Node, n)
		}
		sessions, err := m.session.CloneAll(list)
		for i, s := range sessions {
			c := &member{Node: nodes[i], session: s}
			c.Host = c.PID()
			children = append(children, c)
			r.made.add(c.PID())
		}
		return err
	}
	if err := clone(m.ForksBefore()); err != nil {
		return nil, err
	}
	if m.LeadsSession() {
		b := remote.NewBuilder("lead a session")
		b.Call(unix.SYS_SETSID).Expect(uint64(m.ID))
		f.files.EmitClaim(m.Node, b) // children only inherit a terminal
		if _, err := m.session.Run(b.Program()); err != nil {
			return nil, err
		}
	}
	return children, clone(m.ForksAfter())
}

func (f *family) child(forker, n *restorers.Node) remote.Child {
	c := remote.Child{TID: []int{n.ID}}
	if n.Adopted() {
		c.Flags |= unix.CLONE_PARENT
	}
	if n.Helper() || n.Dead() || forker.Helper() {
		return c
	}
	if n.IDs.GetFilesId() == forker.IDs.GetFilesId() {
		c.Flags |= unix.CLONE_FILES
	}
	if n.IDs.GetFsId() == forker.IDs.GetFsId() {
		c.Flags |= unix.CLONE_FS
	}
	if sharesMemory(n) {
		c.Flags |= unix.CLONE_VM
		if n.IDs.GetSighandId() == forker.IDs.GetSighandId() {
			c.Flags |= unix.CLONE_SIGHAND
		}
	}
	return c
}

// joinGroups makes all process groups and puts their members in.
func (r *restorer) joinGroups(f *family) error {
	turns, err := f.tree.GroupMoves()
	if err != nil {
		return err
	}
	for _, turn := range turns {
		to := map[*member]int{}
		var movers []*member
		for _, move := range turn {
			m := f.byNode[move.Node]
			to[m] = move.Group
			movers = append(movers, m)
		}
		err := r.runAll(movers, "join process groups", func(m *member, b *remote.Builder) error {
			b.Call(unix.SYS_SETPGID, remote.Imm(0), remote.Imm(to[m])).Must()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// runAll runs one program on each of some members, all at the same time. Who has nothing to do is left alone.
func (r *restorer) runAll(members []*member, name string, emit func(*member, *remote.Builder) error) error {
	b := remote.NewBuilder(name)
	return r.runPrograms(members, func(m *member) (*remote.Program, error) {
		b.Reset()
		if err := emit(m, b); err != nil || b.Len() == 0 {
			return nil, err
		}
		p := b.Program()
		b = remote.NewBuilder(name)
		return p, nil
	})
}

// atOnce is how many tasks run programs at the same time: more than there are processors, to always have some waiting,
// and few enough that their programs need little memory.
const atOnce = 64

// runPrograms runs a program on each of some members, many at the same time: those of the first run while those of the
// last are being written.
func (r *restorer) runPrograms(members []*member, program func(*member) (*remote.Program, error)) error {
	return r.tracer.Do(func() error {
		var running []*member
		var errs []error
		finish := func(n int) {
			for _, m := range running[:n] {
				if _, err := m.session.Finish(); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", m.Node, err))
				}
			}
			running = running[n:]
		}
		for _, m := range members {
			p, err := program(m)
			if err == nil && p != nil {
				if err = m.session.Start(p); err == nil {
					running = append(running, m)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", m.Node, err))
			}
			if len(running) == atOnce {
				finish(atOnce / 2)
			}
			if len(errs) > 0 {
				break
			}
		}
		finish(len(running))
		return errors.Join(errs...)
	})
}
