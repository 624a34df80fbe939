package remote

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// Copy is a copy-on-write copy of a stopped task: a child of that task with the same memory as of the moment it was made,
// stopped and traced. It never runs any code of the task's own: alone, it sleeps.
//
// The task does not get a signal at the end of a copy, and finds it only if it waits by __WALL or __WCLONE, or looks for its
// children in /proc. Nobody but the task can reap it: see Reap.
type Copy struct {
	*Session
	PID  int // of the copy, as the tool sees it
	VPID int // the same as the copied task sees it
}

// Copy makes the session's task fork without a word to anybody. The copy shares the task's descriptors until Detach, which
// therefore comes before the task goes on. Kernel 5.3.
func (s *Session) Copy() (*Copy, error) {
	b := NewBuilder("copy the memory")
	sleep, end := b.NewLabel(), b.NewLabel()
	args := arch.CloneArgs{Flags: unix.CLONE_FILES} // a table that is shared costs nothing to copy
	made := b.Clone(b.InOut(args.Bytes()), int(unsafe.Sizeof(args)), sleep).Must()
	b.Jump(end)
	b.Label(sleep) // all signals are blocked
	b.Call(sysPpoll, Imm(0), Imm(0), Imm(0), Imm(0), Imm(0)).Discard()
	b.Jump(sleep)
	b.Label(end)

	leader := s.leader.thread
	if err := s.adopt(leader, ptrace.OptClone|ptrace.OptFork); err != nil {
		return nil, err
	}
	s.leader.born = nil
	res, err := s.Run(b.Program())
	born := s.leader.born
	s.leader.born = nil
	err = errors.Join(err, s.adopt(leader, 0))
	if err == nil && len(born) != 1 {
		err = fmt.Errorf("task %d made %d copies", leader.TID, len(born))
	}
	if err != nil {
		return nil, errors.Join(err, killAll(born))
	}
	vpid, err := res.Value(made)
	var th *Thread
	if err == nil {
		th, err = s.newborn(born[0])
	}
	if err != nil {
		return nil, errors.Join(err, killAll(born))
	}
	c := &Copy{Session: s.copyFor(th), PID: th.TID, VPID: int(vpid)}
	c.status = s.status
	return c, nil
}

// Detach takes the copy out of the task's world: its descriptors, session and process group. From here on it dies with the
// tracer.
func (c *Copy) Detach() error {
	if err := c.adopt(c.leader.thread, ptrace.OptExitKill); err != nil {
		return err
	}
	b := NewBuilder("leave the task's world")
	b.Call(unix.SYS_CLOSE_RANGE, Imm(0), Imm(^uint32(0)), Imm(unix.CLOSE_RANGE_UNSHARE)).Must().Discard() // kernel 5.9
	b.Call(unix.SYS_SETSID).Must().Discard()
	_, err := c.Run(b.Program())
	return err
}

// Kill ends the copy. What is left of it is a zombie, for Reap.
func (c *Copy) Kill() error { return ptrace.Kill(c.PID) }

// addReap adds the operation that reaps a dead child that sends no signal.
func addReap(b *Builder, vpid int) Op {
	return b.Call(unix.SYS_WAIT4, Imm(vpid), Imm(0), Imm(unix.WALL|unix.WNOHANG), Imm(0))
}

// Reap makes the task that a dead copy was made of, and which is still stopped, wait for it.
func (s *Session) Reap(c *Copy) error {
	b := NewBuilder("reap a copy")
	addReap(b, c.VPID).Allow(unix.ECHILD)
	_, err := s.Run(b.Program())
	return err
}

// Reap makes a running task wait for a dead copy of it, whose pid is vpid to the task. One of its threads is stopped for
// that moment. It is called inside Tracer.Do. That there is no such task or child is no error.
func Reap(ctx context.Context, pid, vpid int) error {
	return ignoreGone(reapIn(ctx, pid, vpid))
}

func reapIn(ctx context.Context, pid, vpid int) (err error) {
	escape, err := FindEscape(pid)
	if err != nil {
		return err
	}
	areas, err := findEngines(pid, false)
	if err != nil {
		return err
	}
	tid, err := seizeOne(ctx, pid)
	if err != nil {
		return err
	}
	defer func() {
		if derr := ptrace.Detach(tid, 0); !errors.Is(derr, unix.ESRCH) {
			err = errors.Join(err, derr)
		}
	}()
	// A tool that was killed just before may have left it on its way back to its own work.
	if _, err := stopOutside(ctx, []int{tid}, areas, escape); err != nil {
		return err
	}
	t, err := Capture(tid)
	if err != nil {
		return err
	}
	s, err := prepare(t, Options{Escape: &escape})
	if err != nil {
		return err
	}
	if err := s.openEscape(); err != nil {
		return err
	}
	ret, err := s.remoteCall(unix.SYS_WAIT4, uint64(vpid), 0, unix.WALL|unix.WNOHANG, 0)
	if err = errors.Join(err, s.restoreLeader()); err != nil {
		return err
	}
	if errno := errnoOf(ret); errno != 0 && errno != unix.ECHILD {
		return fmt.Errorf("wait for copy %d in task %d: %w", vpid, pid, errno)
	}
	if ret == 0 {
		return fmt.Errorf("copy %d of task %d is not dead yet", vpid, pid)
	}
	return nil
}
