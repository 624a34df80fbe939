package stages

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"cryo/collectors"
	"cryo/internal/cgfreeze"
	"cryo/internal/guardian"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"

	"golang.org/x/sys/unix"
)

// freezer stops a tree of tasks and finds out who belongs to it. The two cannot be told apart: a task that still runs
// may make new ones. So it stops the tree from the root down, then lists, stops whoever is new, and lists again, until a
// pass over tasks that all stood still finds nobody.
//
// Its methods run on the tracer's thread.
type freezer struct {
	deadline time.Time
	group    *cgfreeze.Group // the control group that holds the tree still meanwhile, nil for none
	root     *collectors.Task
	tasks    map[int]*collectors.Task // by pid
	stopped  map[int]bool             // threads, false: interrupted, not yet stopped
	settled  map[*collectors.Task]bool
}

func newFreezer(timeout time.Duration) *freezer {
	return &freezer{deadline: time.Now().Add(timeout), tasks: map[int]*collectors.Task{}, stopped: map[int]bool{},
		settled: map[*collectors.Task]bool{}}
}

// freeze stops the tree below and including pid.
func (f *freezer) freeze(ctx context.Context, pid int) (*collectors.Task, error) {
	if f.group != nil {
		if err := f.group.Freeze(ctx, f.deadline); err != nil {
			return nil, err
		}
	}
	root, err := f.add(pid, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, numbered(unix.ESRCH, "there is no task %d", pid)
	}
	if err != nil {
		return nil, err
	}
	if err := examineRoot(root); err != nil {
		return nil, err
	}
	f.root = root
	if f.group == nil {
		if err := f.stopDown(ctx, root); err != nil {
			return nil, err
		}
	}
	for {
		before := len(f.stopped) + len(f.tasks)
		if err := f.listHeld(ctx, root); err != nil {
			return nil, err
		}
		if err := f.awaitAll(ctx); err != nil {
			return nil, err
		}
		if len(f.stopped)+len(f.tasks) == before {
			break
		}
	}
	if len(root.Threads) == 0 {
		return nil, fmt.Errorf("task %d ended while it was being stopped", pid)
	}
	if err := f.settleOrphans(); err != nil {
		return nil, err
	}
	for _, t := range f.tasks {
		sortThreads(t)
	}
	return root, nil
}

// sortThreads puts the leader first, the others in order of tid. The leader's is not always the lowest: ids start anew
// when they have run out.
func sortThreads(t *collectors.Task) {
	slices.SortFunc(t.Threads, func(a, b *collectors.Thread) int {
		switch t.Pid {
		case a.Tid:
			return -1
		case b.Tid:
			return 1
		}
		return cmp.Compare(a.Tid, b.Tid)
	})
}

// settleOrphans looks after tasks that have ended, or whose parents have, since they were listed. Zombies may have been
// waited for by parents that did not stand still yet. The children of a task that ended belong to whoever inherited
// them: a reaper of the tree, or one outside, and then they are no longer part of it.
func (f *freezer) settleOrphans() error {
	for again := true; again; {
		again = false
		for _, t := range f.tasks {
			parent := t.Parent
			if t == f.root || t.State != collectors.Dead && f.tasks[parent.Pid] == parent && parent.State != collectors.Dead {
				continue
			}
			stat, err := t.Proc.Stat()
			if err = gone(err); errors.Is(err, fs.ErrNotExist) {
				again = true
				if err := f.drop(t); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			switch heir := f.tasks[stat.PPid]; {
			case heir == nil:
				again = true
				if err := f.dismiss(t); err != nil {
					return err
				}
			case heir != parent:
				again = true
				f.move(t, heir)
			}
		}
	}
	return nil
}

// dismiss lets a task go that has left the tree.
func (f *freezer) dismiss(t *collectors.Task) error {
	for _, th := range t.Threads {
		if err := ptrace.Detach(th.Tid, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		delete(f.stopped, th.Tid)
	}
	for _, tid := range t.Workers {
		if err := ptrace.Detach(tid, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		delete(f.stopped, tid)
	}
	return f.drop(t)
}

// seizePatience is how long seizing may take while a control group is frozen.
const seizePatience = 100 * time.Millisecond

// listHeld is list under a frozen control group, which it thaws when all tasks are interrupted: they stop instead of going
// on. Tasks frozen by the old freezer can stop only then. Those of them that had been stopped by a signal before cannot
// even be seized: seizing waits until the task has taken notice. If that seems to be the case the group is thawed on the
// way, and the passes that follow see to what happens then, as they do without a freezer.
func (f *freezer) listHeld(ctx context.Context, root *collectors.Task) error {
	if f.group == nil {
		return f.list(root)
	}
	early := time.AfterFunc(seizePatience, func() { f.group.Thaw(ctx, f.deadline) })
	err := f.list(root)
	early.Stop()
	return errors.Join(err, f.group.Thaw(ctx, f.deadline))
}

// add takes a task in; it is not stopped yet. Whether it is a zombie shows when it cannot be seized.
func (f *freezer) add(pid int, parent *collectors.Task) (*collectors.Task, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return nil, err
	}
	t := &collectors.Task{Pid: pid, Parent: parent, Proc: dir, State: collectors.Alive}
	f.tasks[pid] = t
	return t, nil
}

// examineRoot refuses what cannot be the root of a tree.
func examineRoot(t *collectors.Task) error {
	stat, err := t.Proc.Stat()
	switch {
	case errors.Is(gone(err), fs.ErrNotExist):
		return fmt.Errorf("there is no task %d", t.Pid)
	case err != nil:
		return err
	case stat.Pid != t.Pid:
		return fmt.Errorf("%d is a thread of task %d: name the task", t.Pid, stat.Pid)
	case stat.State == 'Z' && stat.Threads <= 1:
		return fmt.Errorf("task %d has exited and waits for its parent: there is nothing to dump", t.Pid)
	}
	return nil
}

// gone makes all ways in which /proc says that a task has ended the same error.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fs.ErrNotExist
	}
	return err
}

// manyThreads is from how many threads on a task's children are listed only when it stands still: each thread has a list
// of its own.
const manyThreads = 16

// list walks the tree and interrupts every thread that is not known yet. A task that stands still with all its threads
// can make neither threads nor children; without children none can be given to it either. It is not looked at again.
func (f *freezer) list(t *collectors.Task) error {
	if t.State == collectors.Dead || f.settled[t] {
		return nil
	}
	tids, err := t.Proc.Threads()
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return f.drop(t)
	}
	if err != nil {
		return err
	}
	still := true
	for _, tid := range tids {
		still = still && f.stopped[tid]
		if err := f.interrupt(t, tid); err != nil {
			return err
		}
	}
	if !still && len(tids) >= manyThreads {
		return nil
	}
	children, err := t.Proc.Children(tids)
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return f.drop(t)
	}
	if err != nil {
		return err
	}
	f.settled[t] = still && len(children) == 0
	return f.descend(t, children)
}

// descend lists the children of a task.
func (f *freezer) descend(t *collectors.Task, children []int) (err error) {
	for _, pid := range children {
		child := f.tasks[pid]
		if child == nil {
			if child, err = f.add(pid, t); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			t.Children = append(t.Children, child)
		} else if child.Parent != t {
			f.move(child, t)
		}
		if err := f.list(child); err != nil {
			return err
		}
	}
	return nil
}

// move gives a task whose parent ended, and which a reaper of the tree inherited, to its new parent.
func (f *freezer) move(child, to *collectors.Task) {
	if from := child.Parent; from != nil {
		from.Children = slices.DeleteFunc(from.Children, func(c *collectors.Task) bool { return c == child })
	}
	child.Parent = to
	to.Children = append(to.Children, child)
}

// interrupt seizes a thread and asks it to stop. One that has ended meanwhile is left out.
func (f *freezer) interrupt(t *collectors.Task, tid int) error {
	if _, known := f.stopped[tid]; known {
		return nil
	}
	err := f.seize(t, tid)
	if err == nil {
		err = ptrace.Interrupt(tid)
	}
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.EPERM):
		return f.denied(t, tid)
	case err != nil:
		return err
	}
	f.stopped[tid] = false
	t.Threads = append(t.Threads, &collectors.Thread{Tid: tid})
	return nil
}

// seize seizes a thread. One that a tool still has which was killed just before, or its guardian, is waited for. The guardian
// takes the leader first too: where the leader is ours and another thread is not, it is about to let that go.
func (f *freezer) seize(t *collectors.Task, tid int) error {
	for free := 0; ; time.Sleep(time.Millisecond) {
		err := ptrace.Seize(tid, collectors.TraceOptions)
		if !errors.Is(err, unix.EPERM) || time.Now().After(f.deadline) {
			return err
		}
		s, serr := t.Proc.ThreadStatus(tid)
		if serr != nil || s.State == 'Z' || s.State == 'X' || s.TracerPid != 0 && !guardian.Is(s.TracerPid) && !ending(s.TracerPid) {
			return err
		}
		if s.TracerPid == 0 { // it was let go since, or nobody may seize it
			if free++; free == maxFree {
				return err
			}
		}
	}
}

// ending says whether a process is on its way out, as the tool that was killed just before may be: it has no memory any more.
func ending(pid int) bool {
	cmdline, err := procfs.OpenFile(pid, "cmdline")
	if err != nil {
		return true
	}
	defer cmdline.Close()
	n, _ := cmdline.Read(make([]byte, 1))
	return n == 0
}

// maxFree is how often, a millisecond apart, seizing a thread that has no tracer is refused before that is believed.
const maxFree = 50

// exitPatience is how long the threads of a task that is exiting may take to follow their leader.
const exitPatience = 50 * time.Millisecond

// bury takes a task for a zombie whose leader has exited. It is none as long as other threads run; then it cannot be
// dumped, because nothing can run in it on behalf of the whole task.
func (f *freezer) bury(t *collectors.Task) error {
	for end := time.Now().Add(exitPatience); ; time.Sleep(time.Millisecond) {
		tids, err := t.Proc.Threads()
		if err = gone(err); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(tids) <= 1 {
			t.State = collectors.Dead
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("task %d: its leader has exited and other threads run on (%d), which cannot be dumped", t.Pid, tids[len(tids)-1])
		}
	}
}

// commOf is the name of a task in brackets, empty if it has none any more.
func commOf(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%s)", bytes.TrimSpace(comm))
}

// denied explains why a thread cannot be seized: it has ended, somebody else traces it, or the tool may not.
func (f *freezer) denied(t *collectors.Task, tid int) error {
	s, err := t.Proc.ThreadStatus(tid)
	if err = gone(err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case s.State == 'Z' || s.State == 'X':
		if tid == t.Pid {
			return f.bury(t)
		}
		return nil
	case s.TracerPid != 0:
		return fmt.Errorf("task %d is traced by task %d%s: detach that tracer (a debugger, strace) first", tid, s.TracerPid, commOf(s.TracerPid))
	}
	return fmt.Errorf("task %d may not be traced by this user: run as root or with CAP_SYS_PTRACE", t.Pid)
}
