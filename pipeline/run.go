package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// run is one run of a graph.
type run struct {
	g     *Graph
	obs   []Observer
	start time.Time
}

// Run runs the graph until every stream has ended and every stage has returned.
//
// If a stage fails, the others are cancelled, the undo stack is unwound, and the first error is returned as a
// *StageError, joined with what went wrong on the way back. If ctx is cancelled, the same happens and the error wraps
// its cause. If all goes well, undo steps still on the stack are dropped as by [UndoStack.Commit].
//
// A misdeclared graph is refused before anything runs, with everything that is wrong with it. A graph runs once.
func (g *Graph) Run(ctx context.Context, obs ...Observer) error {
	if err := g.check(); err != nil {
		return err
	}
	if g.ran.Swap(true) {
		return fmt.Errorf("graph %s has run already", g.name)
	}
	g.findCircles()
	r := &run{g: g, obs: obs, start: time.Now()}
	g.undo.tell = r.tell
	for _, o := range obs {
		o.Start(&View{r})
	}
	err := r.stages(ctx)
	if err == nil {
		err = g.Undo().Commit()
	}
	if err != nil {
		err = errors.Join(err, g.Undo().Unwind(ctx))
	}
	for _, o := range obs {
		o.End(err)
	}
	return err
}

// stages runs all stages and returns the first error.
func (r *run) stages(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", r.g.name, context.Cause(ctx))
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, n := range r.g.nodes {
		s := &Stage{n: n, run: r, ctx: gctx, log: r.g.log.With("stage", n.name)}
		group.Go(func() error { return r.stage(s) })
	}
	err := group.Wait()
	if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%s: %w", r.g.name, context.Cause(ctx))
	}
	return err
}

// stage runs one stage and ends its streams, but only if all went well.
func (r *run) stage(s *Stage) error {
	r.stageStart(s)
	err := s.n.run(s)
	r.stageEnd(s, err)
	if err != nil {
		return err
	}
	for _, e := range s.n.outs {
		e.close()
	}
	return nil
}

// process runs body for one item v of the stage's input.
func process[I any](s *Stage, v I, body func() error) error {
	var began time.Duration
	if s.run.watched() {
		began = s.run.itemStart(s, nameOf(v))
	}
	growStack()
	err := protect(body)
	if err == nil && s.n.g.inject != nil {
		err = s.n.g.inject(s.n.name, "item "+nameOf(v))
	}
	if err != nil {
		err = s.fail(nameOf(v), err)
	}
	if s.run.watched() {
		s.run.itemEnd(s, nameOf(v), began, err)
	}
	return err
}
