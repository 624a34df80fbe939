package stages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"cryo/collectors"
	"cryo/internal/cgfreeze"
	"cryo/internal/guardian"
	"cryo/internal/procfs"
	"cryo/internal/spread"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// seize stops the tree and emits it. From here on until finish the tree stands still; the undo stack lets it go.
func (d *dumper) seize(s *pipeline.Stage, emit func(*Tree) error) error {
	if err := refuseOwn(d.o.Tree); err != nil {
		return err
	}
	if err := d.claimTree(s.Context()); err != nil {
		return err
	}
	if err := d.openGroup(); err != nil {
		return err
	}
	if err := d.ownSet(); err != nil {
		return err
	}
	<-d.warmed
	if _, err := d.guard.wait(); err != nil {
		return err
	}
	if err := d.closeDoors(s.Context()); err != nil {
		return err
	}
	var err error
	if d.thawing, err = d.undo.Push("let the tree go", 0, d.thaw); err != nil {
		return err
	}
	freezing := d.stats.Freezing.Start()
	d.frozen = sync.OnceFunc(d.stats.Frozen.Start())
	var root *collectors.Task
	err = d.tracer.Do(func() (err error) {
		root, err = d.freezer.freeze(s.Context(), d.o.Tree)
		return err
	})
	freezing()
	if err != nil {
		return err
	}
	tree := newTree(root)
	s.Logger().Info(fmt.Sprintf("Seized %d tasks, %d threads", len(tree.Tasks), len(d.freezer.stopped)))
	return emit(tree)
}

// openGroup takes the control group of --freeze-cgroup into service. Whatever happens, it is left as it was found.
func (d *dumper) openGroup() (err error) {
	if d.o.FreezeCgroup == "" {
		return nil
	}
	if d.freezer.group, err = cgfreeze.Open(d.o.FreezeCgroup); err != nil {
		return fmt.Errorf("--freeze-cgroup: %w", err)
	}
	if err := d.noteFreezer(); err != nil {
		return err
	}
	return d.pushUndo("leave the control group as it was", func(context.Context) error { return d.freezer.group.Leave() },
		d.groupRecord())
}

// noteFreezer tells the collector of control groups which of them the tool freezes itself.
func (d *dumper) noteFreezer() error {
	g := &collectors.FreezeGroup{Found: d.freezer.group.Found()}
	if err := unix.Stat(d.o.FreezeCgroup, &g.Dir); err != nil {
		return fmt.Errorf("--freeze-cgroup: %w", err)
	}
	d.cgroups.SetFreezer(g)
	return nil
}

// groupRecord is how the guardian leaves the control group as it was.
func (d *dumper) groupRecord() guardian.Write {
	file, text := d.freezer.group.Undo()
	return guardian.Write{File: file, Text: text}
}

// ownTree is in criu's words, which drivers look for.
const ownTree = "The criu itself is within dumped tree"

// refuseOwn refuses a tree that the tool is part of: it would stop itself.
func refuseOwn(root int) error {
	if root <= 0 {
		return fmt.Errorf("there is no task %d: name the root of the tree with -t PID", root)
	}
	for pid := os.Getpid(); pid > 1; {
		if pid == root {
			return fmt.Errorf("%s: task %d is an ancestor of this command: start it elsewhere (setsid, another terminal)", ownTree, root)
		}
		dir, err := procfs.OpenTask(pid)
		if err != nil {
			return err
		}
		stat, err := dir.Stat()
		dir.Close()
		if err != nil {
			return err
		}
		pid = stat.PPid
	}
	return nil
}

// thaw lets the tree go on as it was.
func (d *dumper) thaw(context.Context) error { return d.tracer.Do(d.freezer.thaw) }

// snapshot reads once what every task is looked up in: nothing yet but the ids of the tree, which zombies have too.
func (d *dumper) snapshot(s *pipeline.Stage, tree *Tree) (*Tree, error) {
	if err := spread.Range(len(tree.Tasks), identifyChunk, func(i int) error { return d.identifyTask(tree.Tasks[i]) }); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(tree.Tasks, reaped) {
		for _, t := range tree.Tasks {
			t.Children = slices.DeleteFunc(t.Children, reaped)
		}
		tree = newTree(tree.Root)
	}
	collectors.MarkForked(tree.Tasks)
	d.env.PIDNS.Settle(d.env, tree.Tasks)
	if root := tree.Root; root.Sid != root.VPid && !d.o.ShellJob {
		d.env.Obstacles.Add(collectors.Obstacle{Pid: root.Pid,
			What: fmt.Sprintf("is no session leader: its session is that of task %d, outside of the tree", root.Stat.Session), Remedy: "--shell-job"})
	}
	return tree, nil
}

// identifyChunk is how many tasks are identified at a time.
const identifyChunk = 16

// reaped says whether a zombie has been waited for since the tree was listed: the kernel may be taking it away while its
// parent already stands still. It is then no part of the tree.
func reaped(t *collectors.Task) bool { return !t.Live() && t.Stat == nil }

// statusAndStat reads both, of a live task not again what was read when it stood still already; the error of a task that
// has gone is fs.ErrNotExist.
func statusAndStat(t *collectors.Task) (*procfs.Status, *procfs.Stat, error) {
	status, err := t.Proc.Status()
	if err != nil {
		return nil, nil, gone(err)
	}
	if t.Live() && t.Stat != nil {
		return status, t.Stat, nil
	}
	stat, err := t.Proc.Stat()
	return status, stat, gone(err)
}

// identifyTask fills the ids of a task in the tree's own pid namespace.
func (d *dumper) identifyTask(t *collectors.Task) error {
	status, stat, err := statusAndStat(t)
	if !t.Live() {
		// While the kernel takes a zombie away it has no session any more.
		for i := 0; i < 20 && err == nil && (stat.State == 'X' || stat.Session == 0); i++ {
			time.Sleep(time.Millisecond)
			status, stat, err = statusAndStat(t)
		}
		if errors.Is(err, fs.ErrNotExist) {
			t.Stat = nil // see reaped
			return nil
		}
	}
	if err != nil {
		return err
	}
	t.Stat = stat
	if t.Live() {
		t.Status = status
	}
	d.env.PIDNS.Learn(t, status, stat)
	if t.State == collectors.Dead {
		t.ExitCode = stat.ExitCode
	}
	return nil
}

// eachTask spreads the tree over the stream of tasks.
func (d *dumper) eachTask(_ *pipeline.Stage, tree *Tree, emit func(*collectors.Task) error) error {
	for _, t := range tree.Tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}
