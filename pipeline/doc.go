// Package pipeline runs a declared graph of typed stages joined by channels.
//
// # The model in a nutshell
//
// A graph is declared first and run once. Each function that declares a stage takes the streams the stage reads and
// returns the streams it writes, so the declaration reads as the story of the run, from top to bottom:
//
//	g := pipeline.New("dump")
//	tasks := pipeline.Source(g, "seize", seize)                                      // func(*Stage, emit) error
//	files := pipeline.Map(g, "collect-fds", tasks, collect, Workers(4), InOrder())   // func(*Stage, Task) (Files, error)
//	pipeline.Sink(g, "write-images", files, write)                                   // func(*Stage, Files) error
//	err := g.Run(ctx)
//
// A [Source] emits a stream; [Map] and [FlatMap] work on each item, with as many workers as they declare; [Gather] is a
// barrier that makes one slice of a whole stream; [Broadcast] gives every item to several readers; [Join] pairs two
// streams item by item, [With] hands one value to each item of a stream, [Merge] mixes streams; a [Sink] ends one.
//
// Edges are Go channels with a declared [Buffer]. A slow stage therefore holds back its producers, and nothing is
// unbounded: what a barrier or a join has to hold is held up to a [Limit] and is an error beyond it.
//
// # Joins do not deadlock
//
// Where the branches of a diamond meet again, a join that waited for one branch while the other is full would wait for
// ever. Every circle of the graph, seen without directions, has a join into which it runs from both sides. A join on
// such a circle goes on reading either input while it starves for the other; a join on no circle reads in lock step.
// Both stop reading while a pair is ready and downstream is slow. Run works out which is which from the declaration.
//
// [Join] pairs by position. A stream whose order depends on which worker was faster may not be joined: Run refuses it.
//
// # Failure
//
// The first error cancels the context that all stages share, and Run returns it as a [*StageError] that names graph,
// stage and item. A panic in a body is such an error too. The output of a failed or cancelled stage is never closed: no
// stage can take a broken stream for a finished one.
//
// What a stage changes in the outside world it first pushes on the graph's [UndoStack]. A run that fails or is cancelled
// unwinds the stack in reverse order, each step bounded in time, after all stages have returned. A [Journal] may keep
// the same steps where they outlive this process. [UndoStack.Commit] is the point of no return.
//
// # Watching
//
// Observers given to [Graph.Run] see stages and items begin and end and may look at counters and queue depths at any
// time. [NewTrace], [NewTraceFile], [NewProgress], [NewProgressJSON] and [Stats] are such observers. Without observers
// the engine keeps no clock and no counters. [Graph.DOT] and [Graph.Mermaid] print the declaration.
//
// The package knows no process and no kernel interface: it imports the standard library and errgroup only.
package pipeline
