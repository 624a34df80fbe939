package stages

import (
	"context"
	"errors"
	"fmt"

	"cryo/collectors"
	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/pipeline"
	"cryo/sinks"
)

// memory holds the bodies of the dump's stages that store pages. They are declared by dumpMemory.
type memory struct {
	env   *collectors.Env
	sink  sinks.Sink
	stats *collectors.MemoryStats
	self  *collectors.SelfWriting
	track *tracking
	ahead bool // of a pre-dump: the tasks run
}

// taskPages is a task with the page map its pages go to.
type taskPages struct {
	task   *collectors.Task
	pages  sinks.Pagemap          // nil: there is nothing to store
	parent collectors.ParentPages // what the previous set has of it, nil for nothing
}

// readFlags has smaps read for tasks with much memory. The kernel changes no mapping of a task meanwhile, so what needs
// that comes before.
func (d *dumper) readFlags(_ *pipeline.Stage, tasks []*collectors.Task) ([]*collectors.Task, error) {
	d.startFlags(tasks)
	for _, t := range tasks {
		if d.o.ShareCOW && t.HasMemory() && t.Parent != nil && t.Parent.HasMemory() {
			if err := t.Memory.ShareWith(t, t.Parent); err != nil {
				return nil, fmt.Errorf("task %d: %w", t.Pid, err)
			}
		}
	}
	return tasks, nil
}

// startFlags does so, but for what is read out of copies.
func (d *dumper) startFlags(tasks []*collectors.Task) {
	for _, t := range tasks {
		if t.HasMemory() && !d.readsLater(t) {
			t.Memory.ReadFlags(t)
		}
	}
}

// memoryWorkers is how many tasks are stored at the same time. One large task is split among processors by itself.
const memoryWorkers = 2

// dumpMemory declares the stages that store the pages of each task, in the order of the stream.
func dumpMemory(g *pipeline.Graph, tasks pipeline.Stream[*collectors.Task], m *memory) pipeline.Stream[*collectors.Task] {
	opened := pipeline.Map(g, "open-pages", tasks, m.open)
	return pipeline.Map(g, "parasite-mem", opened, m.store, pipeline.Workers(memoryWorkers), pipeline.InOrder())
}

// open opens the page map of a task: one after the other, because the ids of pages files follow the order.
func (m *memory) open(_ *pipeline.Stage, t *collectors.Task) (taskPages, error) {
	if !t.HasMemory() || t.Memory.HandedOver() {
		return taskPages{task: t}, nil
	}
	parent, err := m.track.parentPages(m.sink, t)
	if err != nil {
		return taskPages{}, err
	}
	pages, err := m.sink.Pagemap(image.TaskPages, uint64(t.VPid))
	return taskPages{t, pages, parent}, err
}

// store writes the pages of one task.
func (m *memory) store(s *pipeline.Stage, tp taskPages) (*collectors.Task, error) {
	if tp.pages == nil {
		return tp.task, nil
	}
	if m.env.Options.LazyPages {
		tp.task.Memory.LeaveLate()
	}
	before := m.stats.Private.Written.Load()
	if tp.parent != nil {
		tp.task.Memory.SetParent(tp.parent)
		defer tp.parent.Close()
	}
	err := m.dump(s.Context(), tp)
	s.Bytes(int64(m.stats.Private.Written.Load()-before) * image.PageSize)
	s.Logger().Debug("pages stored", "task", tp.task.Pid, "pages", m.stats.Private.Written.Load()-before, "self", m.stats.Private.Self.Load())
	if err = errors.Join(err, tp.pages.Close()); err != nil {
		return nil, fmt.Errorf("task %d: %w", tp.task.Pid, err)
	}
	if m.ahead {
		return tp.task, nil
	}
	return tp.task, tp.task.Memory.Check(m.env, tp.task)
}

func (m *memory) dump(ctx context.Context, tp taskPages) error {
	if m.ahead {
		return tp.task.Memory.DumpAhead(ctx, tp.task, tp.pages, m.stats)
	}
	return tp.task.Memory.DumpPages(ctx, tp.task, tp.pages, m.stats, m.self)
}

// lendsPages says whether nobody writes to the tree's memory again once it has been stored: pages that are on their way in a pipe
// are still the tree's.
func (d *dumper) lendsPages() bool {
	return d.o.Final == options.Kill && !d.o.LazyPages && d.give == nil && !d.scripts.Any()
}

// shared stores the shared memory of all tasks, which have been registered, and memfd.img.
func (m *memory) shared(s *pipeline.Stage) error {
	open := func(kind image.PagemapKind, id uint64) (collectors.PageDest, error) { return m.sink.Pagemap(kind, id) }
	if err := m.env.Shared.Dump(s.Context(), open, m.stats); err != nil {
		return err
	}
	s.Bytes(int64(m.stats.Shared.Written.Load()) * image.PageSize)
	return m.env.Shared.Write(m.sink)
}
