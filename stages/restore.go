package stages

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"cryo/internal/actions"
	"cryo/internal/guardian"
	"cryo/internal/image"
	"cryo/internal/lazy"
	"cryo/internal/options"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/internal/stats"
	"cryo/pipeline"
	"cryo/restorers"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// Restore makes a tree of tasks again from an image set and lets it run on, or leaves it stopped, as o.Final says. Until
// the tree is whole every task of it dies with the tool, and a restore that fails leaves nothing behind.
//
// With o.Detach or o.ExecCmd it returns when the tree runs; without, it waits until the root has ended. It needs to be
// allowed to choose pids (root, or CAP_CHECKPOINT_RESTORE) and Linux 5.6. An *OwnIDError says that nothing has been done.
func Restore(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Restore); err != nil {
		return err
	}
	again, err := restoreOnce(ctx, o)
	if err != nil && again && ctx.Err() == nil && guardian.AwaitOrphans(ctx, orphansBound) {
		slog.Info("Trying again: what a tool that was killed had left behind is gone", "failed", err)
		_, err = restoreOnce(ctx, o)
	}
	return err
}

// orphansBound is how long a restore waits for the guardian of one that was killed.
const orphansBound = 10 * time.Second

// restoreOnce restores. If it fails it says whether all is as it was, so that it may be tried again.
func restoreOnce(ctx context.Context, o *options.Options) (again bool, err error) {
	r, err := newRestorer(ctx, o)
	if err != nil {
		return false, err
	}
	defer r.close()
	if err := r.run(ctx); err != nil {
		_, dir := r.source.(*image.Dir) // others can be read only once
		return dir && !r.running, err
	}
	return false, r.afterwards(ctx)
}

// run runs the graph of a restore.
func (r *restorer) run(ctx context.Context) error {
	if err := r.ownIDs(); err != nil {
		return err
	}
	// Whatever a task is doing, it ends when the restore is cancelled, and so does who waits for it.
	defer context.AfterFunc(ctx, r.made.kill)()
	if err := r.scripts.Run(ctx, actions.PreRestore); err != nil {
		return err
	}
	defer r.stats.Restore.Start()()
	return runGraph(ctx, r.graph(), r.o)
}

// restorer holds the services the stages of one restore use. What they learn of the set and the tasks travels on the
// graph's edges.
type restorer struct {
	o        *options.Options
	log      *slog.Logger
	source   image.Source
	images   *os.File // directory the set is in; nil if it comes from elsewhere
	scripts  *actions.Runner
	tracer   *ptrace.Tracer
	g        *pipeline.Graph
	cgroups  *restorers.Cgroups // closed at the end
	guard    *guardian.Guardian // nil: none is needed, or there is none
	lazy     *lazy.Client       // nil: all memory is restored before the tree runs
	finished []func()           // tell the guardian what has been done after the commit
	net      *os.File           // network namespace of the tree; nil: the tool's own
	stats    stats.Restore
	root     int // pid of the restored root as the tool sees it
	made     made
	envoy    *remote.Envoy // nil: the tasks have a name for the tool itself
	running  bool          // the tree lives by itself
	// deathSignal says that the root wants a signal when its parent dies.
	deathSignal bool
	// confirm says when the tree, which is whole, may run, or that it must not; nil: it may.
	confirm func(*pipeline.Stage) error
}

func newRestorer(ctx context.Context, o *options.Options) (*restorer, error) {
	r := &restorer{o: o, log: slog.Default()}
	dir, err := imagesDir(o)
	r.images = dir
	if err == nil {
		r.source, err = openSource(ctx, o, dir)
	}
	if err != nil {
		return nil, err
	}
	if o.LazyPages {
		if r.lazy, err = lazyServer(o, dir); err != nil {
			r.net.Close()
			r.source.Close()
			return nil, err
		}
	}
	r.scripts = &actions.Runner{Scripts: o.ActionScripts, ImageDir: dir, Client: o.Client}
	r.tracer = ptrace.NewTracer()
	return r, nil
}

func (r *restorer) close() {
	r.tracer.Close()
	r.cgroups.Close()
	if r.guard != nil {
		r.guard.Close()
	}
	if r.lazy != nil {
		r.lazy.Close()
	}
	r.source.Close()
}

// graph declares the restore. Reading it tells the whole story.
func (r *restorer) graph() *pipeline.Graph {
	g := pipeline.New("restore")
	g.SetLogger(r.log)
	r.g = g

	set := pipeline.Source(g, "read-images", r.readImages,
		pipeline.Doc("decode the set; memory contents stay where they are"))
	grouped := pipeline.Map(g, "make-groups", set, r.makeGroups,
		pipeline.Doc("make the control groups that are missing; the set may have their directories open"))
	plan := pipeline.Map(g, "plan", grouped, r.plan,
		pipeline.Doc("decide who makes what; refuse what cannot be restored while no task exists"))
	born := pipeline.Map(g, "fork-tree", plan, r.forkTree,
		pipeline.Doc("make all processes, each with the memory its children inherit"))
	opened := pipeline.Map(g, "restore-files", born, r.restoreFiles,
		pipeline.Doc("open every file once and hand it to all who have it"))
	placed := pipeline.Map(g, "restore-mem", opened, r.restoreMem,
		pipeline.Doc("what a fork does not hand on: advice and locks of memory, exe, root, working directory"))
	threaded := pipeline.Map(g, "restore-threads", placed, r.restoreThreads,
		pipeline.Doc("clone all threads and give each what is its own"))
	if r.o.LazyPages {
		threaded = pipeline.Map(g, "lazy-pages", threaded, r.handOver,
			pipeline.Doc("hand the memory that comes late over to its server"))
	}
	whole := pipeline.Map(g, "restorer-jump", threaded, r.jump,
		pipeline.Doc("give privileges away, take the interpreter out, set registers"))
	if r.confirm != nil {
		whole = pipeline.Map(g, "confirm", whole, r.awaitConfirmation,
			pipeline.Doc("wait until the source has given its tree away"))
	}
	pipeline.Sink(g, "resume", whole, r.resume,
		pipeline.Doc("let the tree go on"))
	return g
}

func (r *restorer) readImages(_ *pipeline.Stage, emit func(*restorers.Set) error) error {
	s, err := restorers.Read(r.source)
	if err != nil {
		return err
	}
	return emit(s)
}

func (r *restorer) awaitConfirmation(s *pipeline.Stage, f *family) (*family, error) {
	return f, r.confirm(s)
}

// afterwards is what follows when the tree runs.
func (r *restorer) afterwards(ctx context.Context) error {
	if err := stats.Write(r.o.Work(), r.stats.Entry()); err != nil {
		return err
	}
	if r.o.AutoDedup && r.images != nil && !r.o.Stream && !r.o.LazyPages { // the server of a lazy one does it
		if err := giveBack(r.images, sinks.Empty); err != nil {
			return err
		}
	}
	if r.o.DisplayStats {
		if err := stats.Print(os.Stdout, r.stats.Entry()); err != nil {
			return err
		}
	}
	r.source.Close() // what it has in memory is of no more use
	r.log.Info("Restore finished successfully. Tasks resumed.")
	if r.o.Detach || r.o.Sibling || len(r.o.ExecCmd) > 0 {
		return nil
	}
	r.standBack()
	return r.wait(ctx)
}

// standBack gives back what is not needed to wait for the root. The root is a child of the thread that made it; when that
// has ended the kernel lists it as one of the tool's first thread, where those look for it who start the tool for its child
// (criu-ns does). A root that is to be told of its parent's death would take this for it: the thread stays.
func (r *restorer) standBack() {
	if r.guard != nil {
		r.guard.Close()
	}
	if !r.deathSignal {
		r.tracer.Close()
	}
}

// wait waits for the end of the root task, however it ends, as criu does, and of whatever else is or becomes a child of the
// tool: as the first process of a pid namespace it would take with it those who are still at work there. If ctx is
// cancelled the tasks go on.
func (r *restorer) wait(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() {
		for {
			_, err := unix.Wait4(-1, nil, 0, nil)
			switch err {
			case nil, unix.EINTR:
			case unix.ECHILD:
				ended <- nil
				return
			default:
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("wait for the restored task %d: %w", r.root, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the restored task %d goes on, but is waited for no more: %w", r.root, context.Cause(ctx))
	}
}
