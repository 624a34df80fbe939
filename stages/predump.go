package stages

import (
	"context"
	"runtime"

	"cryo/collectors"
	"cryo/internal/options"
	"cryo/internal/stats"
	"cryo/pipeline"

	"google.golang.org/protobuf/proto"
)

// PreDump saves the memory of the tree below and including o.Tree, ahead of a dump, and lets it run on. The tree stands
// still only while its pages are listed; they are read while it runs, and what is written meanwhile goes into the next
// set, which names this one by o.PrevImagesDir. It needs what Dump needs, and a kernel that tells which pages are written
// (see package dirty).
func PreDump(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.PreDump); err != nil {
		return err
	}
	_, err := preDumpTo(ctx, o, openSink)
	return err
}

// preDumpTo is PreDump to a sink.
func preDumpTo(ctx context.Context, o *options.Options, open opener) (*stats.Dump, error) {
	ahead := *o
	ahead.TrackMem, ahead.Final = true, options.LeaveRunning
	return runDumper(ctx, &ahead, open, (*dumper).preDumpGraph, try{last: true})
}

// preDumpGraph declares the pre-dump.
func (d *dumper) preDumpGraph() *pipeline.Graph {
	g := pipeline.New("pre-dump")
	g.SetLogger(d.log)
	d.undo = g.Undo()
	cpus := runtime.GOMAXPROCS(0)

	tree := pipeline.Source(g, "seize", d.seize,
		pipeline.Doc("stop the tree and list it, until nothing new appears"))
	frozen := pipeline.Map(g, "snapshot", tree, d.snapshot,
		pipeline.Doc("take the ids of the tasks"))
	tasks := pipeline.FlatMap(g, "tasks", frozen, d.eachTask)
	listed := pipeline.Map(g, "list-mappings", tasks, d.listMappings, pipeline.Workers(cpus), pipeline.InOrder())
	tracked := pipeline.Map(g, "track-memory", pipeline.Gather(g, "whole-tree", listed), d.trackAhead,
		pipeline.Doc("list what was written since the previous set, and track what is written from now on"))
	running := pipeline.FlatMap(g, "let-go", tracked, d.letGoAhead,
		pipeline.Doc("let the tree run on"))
	stored := dumpMemory(g, running, d.memory)
	pipeline.Sink(g, "commit", pipeline.Gather(g, "all-stored", stored), d.commitAhead,
		pipeline.Doc("the inventory makes the set valid; leave the tracking to a keeper"))
	return g
}

// listMappings lists the mappings of one task.
func (d *dumper) listMappings(_ *pipeline.Stage, t *collectors.Task) (_ *collectors.Task, err error) {
	if t.Live() {
		t.Memory, err = collectors.ListMemory(t)
	}
	return t, err
}

// trackAhead is trackMemory for tasks that have no engine in them. Those that are new get one for a moment.
func (d *dumper) trackAhead(s *pipeline.Stage, tasks []*collectors.Task) ([]*collectors.Task, error) {
	var err error
	if d.ejecting, err = d.undo.Push("take the parasites out", 0, d.ejectAll(tasks), evictions(tasks)...); err != nil {
		return nil, err
	}
	if err := collectors.FindShared(tasks); err != nil {
		return nil, err
	}
	if tasks, err = d.trackMemory(s, tasks); err != nil {
		return nil, err
	}
	return tasks, d.ejecting.Run(s.Context())
}

// letGoAhead lets the tree run on and emits its tasks.
func (d *dumper) letGoAhead(s *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	for _, t := range tasks {
		if _, err := t.Pidfd(); err != nil && t.Live() {
			return err
		}
	}
	if group := d.freezer.group; group != nil && group.Found() { // tasks go back to the ice they were taken from
		if err := group.Leave(); err != nil {
			return err
		}
	}
	if err := d.thawing.Run(s.Context()); err != nil {
		return err
	}
	d.gone = true
	d.frozen()
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// commitAhead makes the set valid. It has nothing but memory.
func (d *dumper) commitAhead(s *pipeline.Stage, _ []*collectors.Task) error {
	inv, err := d.inventory()
	if err != nil {
		return err
	}
	inv.PreDumpMode = proto.Uint32(uint32(d.o.PreDumpMode))
	if err := d.sink.Commit(inv); err != nil {
		return err
	}
	d.keep(s)
	return d.undo.Commit()
}
