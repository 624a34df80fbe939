package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// UndoStack holds how to take back what the stages of a graph have changed in the outside world. Its methods may be
// called by several goroutines at once.
//
// Push before acting where a kill between the two must not leave anything behind; the step must then bear that nothing
// was done yet.
type UndoStack struct {
	g     *Graph
	stage string // of whom the pushes are
}

// undoCore is the one stack behind all handles of a graph.
type undoCore struct {
	mu      sync.Mutex
	steps   []*UndoStep
	journal Journal
	tell    func(Event)
}

// report tells the observers of the run, if there is one.
func (c *undoCore) report(e Event) {
	if c.tell != nil {
		c.tell(e)
	}
}

// UndoStep is one step of the stack.
type UndoStep struct {
	core   *undoCore
	stage  string
	name   string
	bound  time.Duration
	back   func(context.Context) error
	forget []func()
}

// UndoRecord is an undo step as data, so that another process can do it if this one dies. Its kinds belong to the journal.
// It is an alias so that a journal need not import this package.
type UndoRecord = interface{ UndoKind() string }

// Journal keeps undo records where they outlive this process.
type Journal interface {
	// Record keeps a record until the returned function is called. When it returns, the record is safe.
	Record(UndoRecord) (forget func(), err error)
	// Commit forgets all records.
	Commit() error
}

// defaultBound is the time a step has if it asks for none.
const defaultBound = 5 * time.Second

// undoGrace is how long a step may take to notice that its time is over before it is left behind.
const undoGrace = 100 * time.Millisecond

// Push puts a step on the stack: back takes back what name says, within bound (0: 5 s). The records are what a journal,
// if the graph has one, keeps of it.
//
// An error means that the records could not be kept, or is an injected failure; the step is on the stack all the same.
// Return the error: the run's unwinding does the rest.
func (u *UndoStack) Push(name string, bound time.Duration, back func(context.Context) error, records ...UndoRecord) (*UndoStep, error) {
	if bound <= 0 {
		bound = defaultBound
	}
	core := u.g.undo
	step := &UndoStep{core: core, stage: u.stage, name: name, bound: bound, back: back}
	core.mu.Lock()
	defer core.mu.Unlock()
	core.steps = append(core.steps, step)
	if core.journal != nil {
		for _, r := range records {
			forget, err := core.journal.Record(r)
			if err != nil {
				return step, fmt.Errorf("journal %s: %w", name, err)
			}
			step.forget = append(step.forget, forget)
		}
	}
	if u.g.inject != nil {
		return step, u.g.inject(u.stage, name)
	}
	return step, nil
}

// Done takes the step off the stack: what it would take back is wanted, or has been taken back.
func (s *UndoStep) Done() {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	s.drop()
}

func (s *UndoStep) drop() {
	i := slices.Index(s.core.steps, s)
	if i < 0 {
		return
	}
	s.core.steps = slices.Delete(s.core.steps, i, i+1)
	for _, forget := range slices.Backward(s.forget) {
		forget()
	}
}

// Run takes the step off the stack by doing it, unless that has been done. A step that fails stays in the journal.
func (s *UndoStep) Run(ctx context.Context) error {
	s.core.mu.Lock()
	i := slices.Index(s.core.steps, s)
	if i >= 0 {
		s.core.steps = slices.Delete(s.core.steps, i, i+1)
	}
	s.core.mu.Unlock()
	if i < 0 {
		return nil
	}
	return s.do(ctx)
}

// do runs a step that is off the stack.
func (s *UndoStep) do(ctx context.Context) error {
	began := time.Now()
	s.core.report(Event{Kind: UndoStart, Stage: s.stage, Item: s.name})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.bound)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- protect(func() error { return s.back(ctx) }) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(undoGrace):
			err = fmt.Errorf("not done within %v", s.bound)
		}
	}
	if err == nil {
		for _, forget := range slices.Backward(s.forget) {
			forget()
		}
	} else {
		err = fmt.Errorf("undo %s: %w", s.name, err)
	}
	s.core.report(Event{Kind: UndoEnd, Stage: s.stage, Item: s.name, Took: time.Since(began), Err: err})
	return err
}

// Unwind does all steps, last pushed first, and returns the errors of those that failed, joined. That ctx is cancelled
// does not stop it; each step has its own bound. A run that fails does this by itself; a stage calls it where taking
// everything back is the ordinary end, as in a dry run.
func (u *UndoStack) Unwind(ctx context.Context) error {
	var errs []error
	for {
		u.g.undo.mu.Lock()
		n := len(u.g.undo.steps)
		if n == 0 {
			u.g.undo.mu.Unlock()
			return errors.Join(errs...)
		}
		step := u.g.undo.steps[n-1]
		u.g.undo.steps = u.g.undo.steps[:n-1]
		u.g.undo.mu.Unlock()
		errs = append(errs, step.do(ctx))
	}
}

// Commit drops all steps pushed so far: the point of no return. If the journal does not take it, nothing is dropped.
func (u *UndoStack) Commit() error {
	core := u.g.undo
	core.mu.Lock()
	defer core.mu.Unlock()
	if core.journal != nil {
		if err := core.journal.Commit(); err != nil {
			return fmt.Errorf("%s: commit: %w", u.g.name, err)
		}
	}
	core.steps = nil
	return nil
}
