package stages

import (
	"context"
	"log/slog"
	"os"
	"time"

	"cryo/collectors"
	"cryo/internal/actions"
	"cryo/internal/image"
	"cryo/internal/netlock"
	"cryo/internal/objid"
	"cryo/internal/options"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/internal/stats"
	"cryo/internal/vma"
	"cryo/pipeline"
	"cryo/sinks"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
)

const (
	preDump  = actions.PreDump
	postDump = actions.PostDump
)

// dumper holds the services the stages of one dump use. What they learn of tasks travels on the graph's edges.
type dumper struct {
	o       *options.Options
	try     try
	log     *slog.Logger
	env     *collectors.Env
	sink    sinks.Sink
	images  *os.File // directory the set goes to; nil if it goes elsewhere
	scripts *actions.Runner
	stats   stats.Dump
	undo    *pipeline.UndoStack
	guard   *guardianLaunch
	began   time.Time
	runID   string // names the dump

	tracer  *ptrace.Tracer
	freezer *freezer
	tracees *collectors.Tracees
	memory  *memory
	track   *tracking
	copies  copies

	rootIDs *criu_core.TaskKobjIdsEntry
	cgroups *collectors.Cgroups

	claim        *claim               // keeps other runs off the tree; nil: it could not be claimed
	thawing      *pipeline.UndoStep   // lets the tree go
	ejecting     *pipeline.UndoStep   // takes the engine out of it
	reconnecting []*pipeline.UndoStep // give it its connections back
	gone         bool                 // all have been done
	ended        bool                 // the tree has been killed and not yet waited for
	doors        *pipeline.UndoStep   // lets new connections in; nil: they are not held back
	entrance     netlock.Where        // that lock

	warmed     <-chan struct{}
	frozen     func() // ends the measured time of the stop
	postFailed error  // of the post-dump action, or why the tree could not be given away
	give       giver  // nil: it is not
	held       func() // the guardian is told that a tree that was given away has been dealt with; nil: it was not
}

// newDumper prepares everything that needs no stopped task.
func newDumper(o *options.Options, open opener) (*dumper, error) {
	d := &dumper{o: o, log: slog.Default(), tracer: ptrace.NewTracer(), began: time.Now(), runID: runID()}
	var err error
	if d.images, err = imagesDir(o); err == nil {
		d.track, err = openTracking(o, d.images)
	}
	if err == nil {
		d.sink, err = open(o, d.images)
	}
	if set, ok := d.sink.(interface{ NameParent(string) }); ok {
		set.NameParent(d.track.parentID())
	}
	if err != nil {
		d.track.close()
		d.tracer.Close()
		return nil, err
	}
	d.scripts = &actions.Runner{Scripts: o.ActionScripts, ImageDir: d.images, Client: o.Client}
	d.scripts.SetInit(o.Tree)
	d.freezer = newFreezer(time.Duration(o.Timeout) * time.Second)
	d.env = &collectors.Env{
		Options: o, DryRun: o.DryRun, Images: d.sink, Obstacles: &collectors.Obstacles{}, IDs: objid.NewAllocator(),
		Undo: d.pushUndo, PIDNS: &collectors.PIDNS{},
		InTree: func(pid int) bool { return d.freezer.tasks[pid] != nil },
	}
	if o.DryRun {
		d.env.Images = discard{}
	}
	d.env.Files = collectors.NewFiles(d.env, collectorKinds())
	d.env.Sockets, d.env.Connections = &collectors.InetSockets{}, &collectors.Connections{}
	d.env.NetNS, d.env.UTSNS = &collectors.NetNS{}, &collectors.UTSNS{}
	d.env.Shared = collectors.NewSharedMemory()
	if d.track.comparable(o) {
		d.env.Shared.BuildOn(d.track.parent)
	}
	d.memory = &memory{env: d.env, sink: d.sink, track: d.track, ahead: o.Verb == options.PreDump, stats: &collectors.MemoryStats{}, self: collectors.NewSelfWriting(d.tracer.Do)}
	d.memory.self.Lends = d.lendsPages
	d.tracees = collectors.NewTracees(d.env)
	if d.env.Namespaces, d.rootIDs, err = collectors.NewNamespaces(d.env.IDs); err == nil {
		d.cgroups, err = collectors.NewCgroups(o)
	}
	if err == nil {
		d.env.Prober, err = collectors.NewProber(collectorKinds())
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *dumper) close() {
	d.reap()
	d.env.Files.Close()
	d.env.Connections.Close()
	d.env.NetNS.Close()
	d.entrance.Net.Close()
	if d.env.Prober != nil {
		d.env.Prober.Close()
	}
	d.sink.Close()
	d.track.close()
	d.tracer.Close()
	for _, t := range d.freezer.tasks {
		t.Close()
	}
	if d.freezer.group != nil {
		d.freezer.group.Close()
	}
	d.images.Close()
	d.claim.release()
}

func (d *dumper) pushUndo(name string, back func(context.Context) error, records ...pipeline.UndoRecord) error {
	_, err := d.undo.Push(name, 0, back, records...)
	return err
}

// warm begins what is done only once in a process and is to be done before the freeze, so that the tree does not stand
// still for it. It goes on while the guardian starts; the channel is closed at its end.
func warm(root int) <-chan struct{} {
	go image.Warm() // longer than the rest, and not needed so soon
	warmed := make(chan struct{})
	go func() {
		defer close(warmed)
		vma.Warm()
		remote.FindEscape(root)
	}()
	return warmed
}

// afterwards writes the statistics, when the dump has succeeded.
func (d *dumper) afterwards(context.Context) error {
	if d.o.AutoDedup && d.images != nil && !d.o.PageServer && !d.o.Stream {
		if err := giveBack(d.images, sinks.Dedup); err != nil {
			return err
		}
	}
	entry := d.statsEntry()
	if err := stats.Write(d.o.Work(), entry); err != nil {
		return err
	}
	if d.o.DisplayStats {
		if err := stats.Print(os.Stdout, entry); err != nil {
			return err
		}
	}
	d.log.Info("Dumping finished successfully")
	return d.postFailed
}

// statsEntry adds what the memory stages counted.
func (d *dumper) statsEntry() *pb.StatsEntry {
	m := d.memory.stats
	d.stats.PagesWritten.Store(m.Private.Written.Load())
	d.stats.PagesSkippedParent.Store(m.Private.Parent.Load())
	d.stats.PagesScanned.Store(m.Private.Written.Load() + m.Private.Zero.Load() + m.Private.Parent.Load())
	d.stats.SharedWritten.Store(m.Shared.Written.Load())
	d.stats.SharedSkippedParent.Store(m.Shared.Parent.Load())
	d.stats.SharedScanned.Store(m.Shared.Written.Load() + m.Shared.Zero.Load() + m.Shared.Parent.Load())
	return d.stats.Entry()
}

// discard is the image set of a dry run.
type discard struct{}

func (discard) Create(string) (image.Writer, error) { return discard{}, nil }
func (discard) Write(b []byte) (int, error)         { return len(b), nil }
func (discard) Close() error                        { return nil }
