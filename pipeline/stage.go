package pipeline

import (
	"context"
	"log/slog"

	"golang.org/x/sync/errgroup"
)

// Stage is what a body knows of the stage it works for. Each worker has its own.
type Stage struct {
	n      *node
	run    *run
	ctx    context.Context
	log    *slog.Logger
	worker int
}

// Context is cancelled as soon as the run fails or is cancelled.
func (s *Stage) Context() context.Context { return s.ctx }

// Name is the name the stage was declared with.
func (s *Stage) Name() string { return s.n.name }

// Worker is the number of the worker, from 0 to Workers(n)-1.
func (s *Stage) Worker() int { return s.worker }

// Logger is the graph's logger with the stage's name as an attribute.
func (s *Stage) Logger() *slog.Logger { return s.log }

// Undo is the graph's undo stack.
func (s *Stage) Undo() *UndoStack { return &UndoStack{g: s.n.g, stage: s.n.name} }

// Bytes tells observers that the stage has moved n more bytes.
func (s *Stage) Bytes(n int64) {
	if s.run.watched() {
		s.n.stat.bytes.Add(n)
	}
}

// Progress tells observers that the stage has done so many more units, of whatever it counts, and that so many more are
// to be done in all. Workers may add to both as they go: Progress(0, 100) announces work, Progress(1, 0) does some.
func (s *Stage) Progress(done, total int64) {
	if s.run.watched() {
		s.n.stat.total.Add(total)
		s.n.stat.done.Add(done)
	}
}

// group runs bodies side by side, as workers 0, 1, ... of the stage, until all have returned; the first error cancels
// the others.
func (s *Stage) group(bodies ...func(*Stage) error) error {
	group, ctx := errgroup.WithContext(s.ctx)
	for i, body := range bodies {
		worker := *s
		worker.ctx, worker.worker = ctx, i
		group.Go(func() error { return body(&worker) })
	}
	return group.Wait()
}

// serve runs body over a stream with as many workers as the stage has.
func serve[I, O any](s *Stage, in Stream[I], out Stream[O], body func(*Stage, I, func(O) error) error) error {
	if s.n.workers > 1 && s.n.inOrder {
		return serveInOrder(s, in, out, body)
	}
	worker := func(s *Stage) error {
		emit := func(o O) error { return push(s, out, o) }
		for {
			v, ok, err := pull(s, in)
			if err != nil || !ok {
				return err
			}
			if err := process(s, v, func() error { return body(s, v, emit) }); err != nil {
				return err
			}
		}
	}
	if s.n.workers == 1 {
		return worker(s)
	}
	workers := make([]func(*Stage) error, s.n.workers)
	for i := range workers {
		workers[i] = worker
	}
	return s.group(workers...)
}

// serveInOrder deals items out to the workers and lines up, in the order of the input, one channel an item for what the
// worker makes of it. The line holds as many items as there are workers; the first in line is always with a worker.
func serveInOrder[I, O any](s *Stage, in Stream[I], out Stream[O], body func(*Stage, I, func(O) error) error) error {
	type job struct {
		v    I
		made chan O
	}
	jobs := make(chan job)
	line := make(chan chan O, s.n.workers)
	worker := func(s *Stage) error {
		for {
			j, ok, err := receive(s, jobs)
			if err != nil || !ok {
				return err
			}
			emit := func(o O) error { return send(s, j.made, o) }
			if err := process(s, j.v, func() error { return body(s, j.v, emit) }); err != nil {
				return err
			}
			close(j.made)
		}
	}
	deal := func(s *Stage) error {
		for {
			v, ok, err := pull(s, in)
			if err != nil {
				return err
			}
			if !ok {
				close(jobs)
				close(line)
				return nil
			}
			j := job{v, make(chan O, 1)}
			if err := send(s, line, j.made); err != nil {
				return err
			}
			if err := send(s, jobs, j); err != nil {
				return err
			}
		}
	}
	emit := func(s *Stage) error {
		for {
			made, ok, err := receive(s, line)
			if err != nil || !ok {
				return err
			}
			for {
				o, ok, err := receive(s, made)
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				if err := push(s, out, o); err != nil {
					return err
				}
			}
		}
	}
	bodies := make([]func(*Stage) error, s.n.workers, s.n.workers+2)
	for i := range bodies {
		bodies[i] = worker
	}
	return s.group(append(bodies, deal, emit)...)
}

// pump passes everything that comes on in to each of outs.
func pump[T any](s *Stage, in Stream[T], outs ...Stream[T]) error {
	for {
		v, ok, err := pull(s, in)
		if err != nil || !ok {
			return err
		}
		for _, out := range outs {
			if err := push(s, out, v); err != nil {
				return err
			}
		}
	}
}

// pull reads the next item of a stream; ok is false at its end.
func pull[T any](s *Stage, in Stream[T]) (v T, ok bool, err error) {
	if v, ok, err = receive(s, in.ch); ok {
		s.countIn()
	}
	return v, ok, err
}

// push writes an item to a stream, waiting while it is full.
func push[T any](s *Stage, out Stream[T], v T) error {
	if !s.run.watched() {
		return send(s, out.ch, v)
	}
	offered := s.run.clock()
	err := send(s, out.ch, v)
	if err == nil {
		s.countOut(offered)
	}
	return err
}

// receive reads from a channel of the run. Once the run is cancelled it delivers nothing more, even if there is.
func receive[T any](s *Stage, ch <-chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-ch:
		if s.ctx.Err() != nil {
			return v, false, errStopped
		}
		return v, ok, nil
	case <-s.ctx.Done():
		return v, false, errStopped
	}
}

func send[T any](s *Stage, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-s.ctx.Done():
		return errStopped
	}
}
