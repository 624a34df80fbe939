package stages

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"cryo/collectors"
	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/internal/remote"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// copies are copy-on-write copies of the tasks of a tree that runs on: it stands still for as long as a fork takes, and
// its memory is stored out of the copies while it runs.
type copies struct {
	end *pipeline.UndoStep // of those there are

	mu sync.Mutex
	of map[*collectors.Task]*remote.Copy
}

// take takes the copy of a task out; nil if there is none any more.
func (c *copies) take(t *collectors.Task) *remote.Copy {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.of[t]
	delete(c.of, t)
	return taken
}

// Bounds of what is copied, in KiB of the tasks' own memory: below them storing takes hardly longer than copying. Tests lower
// them.
var (
	minCopiedTree uint64 = 16 << 10
	minCopiedTask uint64 = 1 << 10
	minReadLater  uint64 = 64 << 10
)

// runsOn says whether the tree is let go as soon as nothing more is asked of it. Not so if a script has to see it stand
// still.
func (d *dumper) runsOn() bool {
	return d.o.Final == options.LeaveRunning && !d.o.LazyPages && d.give == nil && !d.scripts.Any() && d.o.FreezeCgroup == ""
}

// mayCopy says whether the memory may be stored out of copies. What an increment stores is little.
func (d *dumper) mayCopy() bool {
	return d.runsOn() && !d.o.TrackMem && d.o.PrevImagesDir == ""
}

// readsLater says whether smaps of a task, which takes long, is read out of its copy.
func (d *dumper) readsLater(t *collectors.Task) bool {
	return d.mayCopy() && t.Status.RssAnon >= minReadLater
}

// copyMemory makes copies of the large tasks of a tree that runs on, and emits all tasks. Where that cannot be, their memory
// is stored while they stand still, which the log tells.
func (d *dumper) copyMemory(s *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	if d.mayCopy() {
		if err := d.makeCopies(s, worthCopying(tasks)); err != nil {
			return err
		}
	}
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// worthCopying selects the tasks to be copied.
func worthCopying(tasks []*collectors.Task) (large []*collectors.Task) {
	var all uint64
	for _, t := range tasks {
		if t.HasMemory() && t.Session != nil && !t.Memory.Watched() { // who watches may want to hear of a fork first
			all += t.Status.RssAnon
			if t.Status.RssAnon >= minCopiedTask {
				large = append(large, t)
			}
		}
	}
	if all < minCopiedTree {
		return nil
	}
	return large
}

// makeCopies copies all of the tasks or none.
func (d *dumper) makeCopies(s *pipeline.Stage, tasks []*collectors.Task) error {
	if len(tasks) == 0 {
		return nil
	}
	if err := collectors.RoomForCopies(tasks); err != nil {
		s.Logger().Warn(noCopies, "cause", err)
		return nil
	}
	d.copies.of = map[*collectors.Task]*remote.Copy{}
	var err error
	if d.copies.end, err = d.undo.Push("end the copies", copiesBound, d.endCopies, d.searches(tasks)...); err != nil {
		return err
	}
	cause := d.tracer.Do(func() error { return d.fork(tasks) })
	if cause == nil {
		if err := d.tellOfCopies(tasks); err != nil {
			return err
		}
		cause = d.tracer.Do(d.detachCopies)
	}
	for i := 0; i < len(tasks) && cause == nil; i++ {
		t := tasks[i]
		cause = t.Memory.HandOver(s.Context(), t, d.copies.of[t], d.spill, d.memory.self)
	}
	if cause == nil {
		return nil
	}
	if err := context.Cause(s.Context()); err != nil {
		return err
	}
	s.Logger().Warn(noCopies, "cause", cause)
	for _, t := range tasks {
		t.Memory.TakeBack(t)
	}
	return d.copies.end.Run(s.Context())
}

const noCopies = "no copy-on-write copies of the tasks can be made: they stand still until their memory is stored"

// tellOfCopies tells the guardian which copies there are. Those it knows may die with the tool: it need not know them by
// what is in their memory.
func (d *dumper) tellOfCopies(tasks []*collectors.Task) error {
	records, err := d.knownCopies(tasks)
	if err != nil {
		return err
	}
	_, err = d.undo.Push("end the known copies", copiesBound, d.endCopies, records...)
	return err
}

// fork makes the copies.
func (d *dumper) fork(tasks []*collectors.Task) error {
	for _, t := range tasks {
		c, err := t.Session.Copy()
		if err != nil {
			return err
		}
		d.copies.of[t] = c
	}
	return nil
}

// detachCopies takes the copies out of the world of their tasks. When memory gets short it is them the kernel kills first.
func (d *dumper) detachCopies() error {
	for _, c := range d.copies.of {
		if err := c.Detach(); err != nil {
			return err
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID), []byte("1000"), 0); err != nil {
			return err
		}
	}
	return nil
}

// spill makes a nameless file for what is stored later: beside the images, or in memory where they go elsewhere.
func (d *dumper) spill() (*os.File, error) {
	if d.images != nil {
		fd, err := unix.Openat(int(d.images.Fd()), ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
		if err == nil {
			return os.NewFile(uintptr(fd), "memory of tasks"), nil
		}
	}
	fd, err := unix.MemfdCreate("memory of tasks", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "memory of tasks"), nil
}

// openCopy opens the page map of a task that has been copied.
func (d *dumper) openCopy(_ *pipeline.Stage, t *collectors.Task) (taskPages, error) {
	if !t.HasMemory() || !t.Memory.HandedOver() {
		return taskPages{task: t}, nil
	}
	pages, err := d.sink.Pagemap(image.TaskPages, uint64(t.VPid))
	return taskPages{task: t, pages: pages}, err
}

// storeCopy writes the pages of a task out of its copy, which then ends.
func (d *dumper) storeCopy(s *pipeline.Stage, tp taskPages) (*collectors.Task, error) {
	if tp.pages == nil {
		return tp.task, nil
	}
	if _, err := d.memory.store(s, tp); err != nil {
		return nil, err
	}
	// What smaps says in the way of a dump is known only now.
	if err := d.env.Obstacles.Err(); err != nil {
		return nil, err
	}
	return tp.task, d.endCopy(s.Context(), tp.task)
}

// copiesBound is how long ending all copies may take: the kernel gives a GiB back in a tenth of a second.
const copiesBound = 30 * time.Second

// reapPatience is how long a task may take to stop for the moment in which it reaps its copy.
const reapPatience = 2 * time.Second

// endCopies ends all copies there still are.
func (d *dumper) endCopies(ctx context.Context) error {
	d.copies.mu.Lock()
	left := slices.Collect(maps.Keys(d.copies.of))
	d.copies.mu.Unlock()
	var errs []error
	for _, t := range left {
		errs = append(errs, d.endCopy(ctx, t))
	}
	return errors.Join(errs...)
}

// endCopy ends the copy of a task, if there is one, and makes the task reap it.
func (d *dumper) endCopy(ctx context.Context, t *collectors.Task) error {
	c := d.copies.take(t)
	if c == nil {
		return nil
	}
	return d.tracer.Do(func() error {
		if err := c.Kill(); err != nil {
			return err
		}
		var err error
		if t.Session != nil {
			err = t.Session.Reap(c)
		} else {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reapPatience)
			defer cancel()
			err = remote.Reap(ctx, t.Pid, c.VPID)
		}
		if err != nil {
			d.log.Warn("a zombie is left: the copy-on-write copy of a task", "task", t.Pid, "copy", c.PID, "cause", err)
		}
		return nil
	})
}

// searches is what the guardian has to know to find copies that have just been made, of which nobody has told it.
func (d *dumper) searches(tasks []*collectors.Task) []pipeline.UndoRecord {
	var records []pipeline.UndoRecord
	for chunk := range slices.Chunk(tasks, pidsPerRecord/2) {
		var r endCopies
		for _, t := range chunk {
			p := copiedTask{taskID: taskID{t.Pid, t.Stat.StartTime}}
			for _, c := range t.Children {
				p.Children = append(p.Children, c.Pid)
			}
			r.Tasks = append(r.Tasks, p)
		}
		records = append(records, r)
	}
	return records
}

// knownCopies is what the guardian has to know to end copies.
func (d *dumper) knownCopies(tasks []*collectors.Task) ([]pipeline.UndoRecord, error) {
	var records []pipeline.UndoRecord
	for chunk := range slices.Chunk(tasks, pidsPerRecord/2) {
		var r endCopies
		for _, t := range chunk {
			c := d.copies.of[t]
			start, err := startTime(c.PID)
			if err != nil {
				return nil, err
			}
			r.Copies = append(r.Copies, copyID{taskID{c.PID, start}, t.Pid, c.VPID})
		}
		records = append(records, r)
	}
	return records, nil
}

// startTime is when a task started, in ticks since boot.
func startTime(pid int) (uint64, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	stat, err := dir.Stat()
	if err != nil {
		return 0, err
	}
	return stat.StartTime, nil
}
