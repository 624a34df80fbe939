package stages

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"time"

	"cryo/collectors"
	"cryo/internal/actions"
	"cryo/internal/options"
	"cryo/internal/stats"
	"cryo/pipeline"
	"cryo/sinks"
)

// Dump saves the tree of tasks below and including o.Tree as an image set, and then ends it, stops it or lets it run on,
// as o.Final says. A failed dump leaves the tree running as it was and no set. With o.DryRun it only finds out what
// stands in the way.
//
// If something stands in the way the error is a [*collectors.ObstacleError] that lists everything. Dump needs to be
// allowed to trace the tasks (root, or CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE) and Linux 5.6.
func Dump(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Dump); err != nil {
		return err
	}
	pause := firstPause
	for n := 1; ; n++ {
		t := try{again: n > 1, last: n == dumpTries || o.Stream || o.PageServer || o.ImagesDir == piped} // what has been sent is not sent again
		_, err := runDumper(ctx, o, openSink, (*dumper).graph, t)
		if t.last || !goesAway(err) {
			return err
		}
		slog.Info(fmt.Sprintf("Trying again in %v: %v", pause, err))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
			pause *= 2
		}
	}
}

// A dump is tried so often while all that stands in its way goes away by itself; the tree runs in between, for so long at
// first, and then twice as long each time.
const (
	dumpTries  = 7
	firstPause = 5 * time.Millisecond
)

// try says which of several dumps of a tree one is.
type try struct{ again, last bool }

// goesAway says whether a dump was refused for nothing but what may have gone away in a moment.
func goesAway(err error) bool {
	var o *collectors.ObstacleError
	return errors.As(err, &o) && !slices.ContainsFunc(o.List, func(o collectors.Obstacle) bool { return !o.Passing })
}

// opener opens where a set goes to; its directory stays the caller's, and is nil where it has none.
type opener func(*options.Options, *os.File) (sinks.Sink, error)

// runDumper runs the graph that declare makes of a dumper, with a guardian, and when it has succeeded what follows.
func runDumper(ctx context.Context, o *options.Options, open opener, declare func(*dumper) *pipeline.Graph, t try) (*stats.Dump, error) {
	hideShards(o)
	guard, warmed := launchGuardian(), warm(o.Tree)
	own := *o // the client may add to it
	d, err := newDumper(&own, open)
	if err != nil {
		return nil, errors.Join(err, guard.close())
	}
	defer d.close()
	if server := sinks.Server(d.sink); server != nil { // it may take its time
		defer context.AfterFunc(ctx, server.Interrupt)()
	}
	d.warmed, d.try = warmed, t
	if err = d.announce(ctx); err == nil {
		err = d.run(ctx, declare(d), guard)
	}
	if err != nil || !guard.dismiss() {
		err = errors.Join(err, guard.close())
	}
	if errors.Is(err, errDryRun) {
		return nil, d.env.Obstacles.Err()
	}
	if err != nil {
		return nil, err
	}
	return &d.stats, errors.Join(d.afterwards(ctx), guard.close())
}

// announce tells of the dump that begins, and asks the client what is to stay outside of it.
func (d *dumper) announce(ctx context.Context) error {
	if !d.try.again {
		if err := d.scripts.Run(ctx, preDump); err != nil {
			return err
		}
	}
	if d.o.Client == nil || d.o.Verb == options.PreDump {
		return nil
	}
	more, err := d.o.Client.External(ctx)
	if err != nil {
		return fmt.Errorf("action %s: %w", actions.QueryExtFiles, err)
	}
	d.o.External = append(slices.Clip(d.o.External), more...)
	return nil
}

func (d *dumper) run(ctx context.Context, g *pipeline.Graph, guard *guardianLaunch) error {
	if testGraph != nil {
		testGraph(g)
	}
	d.guard = guard
	g.SetJournal(guard)
	return runGraph(ctx, g, d.o)
}

// testGraph, in tests, sees each graph before it runs.
var testGraph func(*pipeline.Graph)

// graph declares the dump. Reading it tells the whole story.
func (d *dumper) graph() *pipeline.Graph {
	g := pipeline.New("dump")
	g.SetLogger(d.log)
	d.undo = g.Undo()
	cpus := runtime.GOMAXPROCS(0)

	tree := pipeline.Source(g, "seize", d.seize,
		pipeline.Doc("stop the tree and list it, until nothing new appears"))
	frozen := pipeline.Map(g, "snapshot", tree, d.snapshot,
		pipeline.Doc("take what descriptors are looked up in"))
	both := pipeline.Broadcast(g, "share", frozen, 2)

	tasks := pipeline.FlatMap(g, "tasks", both[0], d.eachTask)
	probed := pipeline.Map(g, "collect-fds", tasks, d.collectFDs, pipeline.Workers(cpus), pipeline.InOrder(),
		pipeline.Doc("read what /proc tells of a task: status, descriptors, mappings"))
	named := pipeline.Map(g, "identify", probed, d.identify,
		pipeline.Doc("number objects and files in task order"))
	whole := pipeline.Gather(g, "whole-tree", named)
	trees := pipeline.Broadcast(g, "share-tree", whole, 2)
	told := pipeline.FlatMap(g, "parasite-state", trees[0], d.parasiteState,
		pipeline.Doc("ask all tasks about themselves"))
	cored := pipeline.Map(g, "write-cores", told, d.writeCores, pipeline.Workers(cpus), pipeline.InOrder(),
		pipeline.Doc("write what the threads of a task have said"))
	sure := pipeline.Map(g, "refuse", pipeline.Gather(g, "all-told", cored), d.refuse,
		pipeline.Doc("refuse here what cannot be dumped, with everything that stands in the way"))
	sure = pipeline.Map(g, "track-memory", sure, d.trackMemory,
		pipeline.Doc("with --track-mem: list what was written since the previous set, and track what is written from now on"))
	sure = pipeline.Map(g, "flags", sure, d.readFlags,
		pipeline.Doc("begin to read what only smaps tells of large memory, beside all that follows"))
	locked := pipeline.FlatMap(g, "connections", sure, d.connections,
		pipeline.Doc("lock the network and store TCP connections"))
	if d.mayCopy() {
		locked = pipeline.FlatMap(g, "copy-memory", pipeline.Gather(g, "all-locked", locked), d.copyMemory,
			pipeline.Doc("make copy-on-write copies of large tasks, which are stored when the tree runs on"))
	}
	stored := pipeline.Gather(g, "whole-memory", dumpMemory(g, locked, d.memory))
	kept := pipeline.FlatMap(g, "let-go", stored, d.letGo,
		pipeline.Doc("store shared memory; a tree that is to run on does so from here"))
	if d.mayCopy() {
		opened := pipeline.Map(g, "open-copies", kept, d.openCopy)
		kept = pipeline.Map(g, "store-copies", opened, d.storeCopy, pipeline.Workers(memoryWorkers), pipeline.InOrder(),
			pipeline.Doc("store pages out of the copies, which end then"))
	}
	written := pipeline.Map(g, "write-tasks", kept, d.writeTask, pipeline.Workers(cpus), pipeline.InOrder(),
		pipeline.Doc("write the small images of a task"))

	shared := pipeline.Map(g, "collect-shared", both[1], d.collectShared,
		pipeline.Doc("collect what belongs to no single task"))
	shared = pipeline.With(g, "collect-cgroups", shared, trees[1], d.collectCgroups,
		pipeline.Doc("store the control groups the tree is in"))
	complete := pipeline.With(g, "write-images", pipeline.Gather(g, "all-written", written), shared, d.writeImages,
		pipeline.Doc("write the images of the whole tree"))
	valid := pipeline.Map(g, "commit", complete, d.commit,
		pipeline.Doc("the inventory makes the set valid"))
	if d.o.LazyPages {
		valid = pipeline.Map(g, "lazy-pages", valid, d.serveLate,
			pipeline.Doc("send the memory that was left in the tasks to who restores them"))
	}
	if d.give != nil {
		valid = pipeline.Map(g, "hand-over", valid, d.handOver,
			pipeline.Doc("give the tree away, or keep it"))
	}
	pipeline.Sink(g, "finish", valid, d.finish,
		pipeline.Doc("kill the tree, leave it stopped, or let it run on"))
	return g
}

// Tree is a frozen tree of tasks: the edge between freezing and collecting.
type Tree struct {
	Root *collectors.Task
	// Tasks are all tasks, parents before their children, in the order in which images number what they use.
	Tasks []*collectors.Task
}

// newTree puts the tasks in order: depth first, children as the kernel lists them, oldest first.
func newTree(root *collectors.Task) *Tree {
	tree := &Tree{Root: root}
	var walk func(*collectors.Task)
	walk = func(t *collectors.Task) {
		tree.Tasks = append(tree.Tasks, t)
		for _, c := range t.Children {
			walk(c)
		}
	}
	walk(root)
	return tree
}
