package remote

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// Child says which task a restored task clones.
type Child struct {
	TID        []int          // as in SpawnOptions
	Flags      uint64         // CLONE_*
	ExitSignal syscall.Signal // SIGCHLD if 0 and neither CLONE_PARENT nor CLONE_THREAD is in Flags
	Cgroup     int            // a descriptor of the cloning task, see SpawnOptions; 0: none
}

// threadFlags are what makes a clone a thread of its parent.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// Clone makes the session's task fork one child, with the engine at the same place in it.
func (s *Session) Clone(c Child) (*Session, error) {
	children, err := s.CloneAll([]Child{c})
	if err != nil {
		return nil, err
	}
	return children[0], nil
}

// CloneAll makes the session's task fork many children by one program. All are stopped and traced when it returns. On an
// error those that were made are killed. One with CLONE_VM shares the engine too, and takes one of its slots for good.
func (s *Session) CloneAll(children []Child) ([]*Session, error) {
	tids, err := s.cloneProgram("fork children", children)
	if err != nil {
		return nil, errors.Join(err, killAll(tids))
	}
	sessions := make([]*Session, len(tids))
	for i, tid := range tids {
		th, err := s.newborn(tid)
		if err != nil {
			return nil, errors.Join(err, killAll(tids))
		}
		if children[i].Flags&unix.CLONE_VM == 0 {
			sessions[i] = s.copyFor(th)
		} else if sessions[i], err = s.shareFor(th); err != nil {
			return nil, errors.Join(err, killAll(tids))
		}
	}
	return sessions, nil
}

// CloneThreads makes the session's task clone threads with the given ids, one for each pid namespace it is in from the
// innermost on. All are stopped when it returns; RunOn and Enter run programs on them. On an error the task has some of them,
// and is good for nothing but being killed: threads do not end alone.
func (s *Session) CloneThreads(ids [][]int) ([]*Thread, error) {
	children := make([]Child, len(ids))
	for i, id := range ids {
		children[i] = Child{TID: id, Flags: threadFlags}
	}
	tids, err := s.cloneProgram("clone threads", children)
	if err != nil {
		return nil, err
	}
	threads := make([]*Thread, len(tids))
	for i, tid := range tids {
		if threads[i], err = s.newborn(tid); err != nil {
			return nil, err
		}
	}
	return threads, nil
}

// cloneProgram runs the program that makes the children and returns their ids as this process sees them, those of the ones
// that were made if there is an error.
func (s *Session) cloneProgram(name string, children []Child) (tids []int, err error) {
	err = retryTaken(func() []int { return children[len(tids)].TID }, func() error {
		b := NewBuilder(name)
		for _, c := range children[len(tids):] { // those that are not there yet
			c.add(b)
		}
		s.leader.born = nil
		_, err := s.Run(b.Program())
		tids = append(tids, s.leader.born...)
		s.leader.born = nil
		return err
	})
	if err == nil && len(tids) != len(children) {
		err = fmt.Errorf("task %d cloned %d of %d", s.leader.thread.TID, len(tids), len(children))
	}
	return tids, err
}

// add adds the operations that clone c. The child never runs past its birth stop by itself, so it needs no branch.
func (c *Child) add(b *Builder) {
	args := arch.CloneArgs{Flags: c.Flags, ExitSignal: uint64(c.ExitSignal), SetTIDSize: uint64(len(c.TID))}
	if c.ExitSignal == 0 && c.Flags&(unix.CLONE_PARENT|unix.CLONE_THREAD) == 0 {
		args.ExitSignal = uint64(unix.SIGCHLD)
	}
	if c.Cgroup != 0 {
		args.Flags |= unix.CLONE_INTO_CGROUP
		args.Cgroup = uint64(c.Cgroup)
	}
	ref := b.InOut(args.Bytes())
	if len(c.TID) > 0 {
		ids := make([]byte, 4*len(c.TID))
		for i, tid := range c.TID {
			le.PutUint32(ids[4*i:], uint32(tid))
		}
		b.Store(ref.At(int(unsafe.Offsetof(args.SetTID))), b.Bytes(ids))
	}
	call := b.Call(sysClone3, ref, Imm(int(unsafe.Sizeof(args))))
	if len(c.TID) > 0 {
		call.Expect(uint64(c.TID[0]))
	} else {
		call.Must()
	}
}

// newborn waits for the birth stop of a clone.
func (s *Session) newborn(tid int) (*Thread, error) {
	st, err := ptrace.Wait(tid)
	if err != nil {
		return nil, err
	}
	if st.Gone() {
		return nil, fmt.Errorf("%v at its birth: %w", st, unix.ESRCH)
	}
	t := &Thread{TID: tid}
	return t, ptrace.GetRegs(tid, &t.Regs)
}

// copyFor is the session of a forked child: the same places in its own copy of the memory.
func (s *Session) copyFor(leader *Thread) *Session {
	c := &Session{area: s.area, code: s.code, instr: s.instr, restored: true}
	free := slices.Clone(*s.free)
	c.free = &free
	l := *s.leader
	l.session, l.thread, l.run, l.buf, l.born = c, leader, nil, nil, nil
	c.leader = &l
	return c
}

// shareFor is the session of a child that shares the memory: another slot of the same area.
func (s *Session) shareFor(leader *Thread) (*Session, error) {
	c := &Session{area: s.area, code: s.code, instr: s.instr, restored: true, shares: true, free: s.free}
	c.leader = s.leader
	var err error
	c.leader, err = c.slotFor(leader)
	return c, err
}

// killAll kills tasks by their leaders.
func killAll(pids []int) (err error) {
	for _, pid := range pids {
		err = errors.Join(err, ptrace.Kill(pid))
	}
	return err
}

// StopWith makes programs of a restored task stop with another signal than SIGURG: one that is not going to be pending in
// it. Its disposition does not matter.
func (s *Session) StopWith(sig syscall.Signal) error {
	s.leader.signal = sig
	return ptrace.SetSigMask(s.leader.thread.TID, s.leader.programMask())
}

// Remove unmaps the engine from a restored task, as the last thing that runs in it. Its threads are stopped then without
// any code of their own to go on with: give each its state with Thread.Restore and detach it.
func (s *Session) Remove() error { return RemoveAll([]*Session{s})[0] }

// RemoveAll is Remove from many tasks, which work at the same time.
func RemoveAll(sessions []*Session) []error { return unmapAll(sessions) }

// Restore sets extended state, registers and signal mask of a stopped thread to what t says. With the next
// ptrace.Detach the thread is on its own.
func (t *Thread) Restore() error {
	return errors.Join(ptrace.SetState(t.TID, &t.State), ptrace.SetSigMask(t.TID, t.SigMask))
}
