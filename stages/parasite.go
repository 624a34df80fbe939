package stages

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"cryo/collectors"
	"cryo/internal/guardian"
	"cryo/pipeline"
)

// errDryRun ends a dry run, which takes everything back, where a dump would begin to store memory.
var errDryRun = errors.New("dry run")

// askedTogether is how many tasks are asked at the same time. What they say is written and let go before the next are
// asked, so that a large tree does not make the tool large.
const askedTogether = 64

// threadsTogether is how many threads of one task are asked before what they have said is written.
const threadsTogether = 128

// told is a task of which some threads have told what there is to tell: none of a zombie, and none of a task that cannot
// be dumped.
type told struct {
	task    *collectors.Task
	threads []*collectors.Thread
	last    bool // of the task
}

// parasiteState asks all tasks about themselves and emits them.
func (d *dumper) parasiteState(_ *pipeline.Stage, tasks []*collectors.Task, emit func(told) error) (err error) {
	d.ejecting, err = d.undo.Push("take the parasites out", 0, d.ejectAll(tasks), evictions(tasks)...)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if t.HasMemory() {
			if err := t.Memory.AwaitFlags(t); err != nil {
				return fmt.Errorf("task %d: %w", t.Pid, err)
			}
		}
	}
	for chunk := range slices.Chunk(tasks, askedTogether) {
		var answered []*collectors.Task
		err := d.tracer.Do(func() (err error) {
			answered, err = d.ask(chunk)
			return err
		})
		for _, t := range chunk {
			if err == nil && slices.Contains(answered, t) {
				err = d.askThreads(t, emit)
			} else if err == nil {
				err = emit(told{task: t, last: true})
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// askThreads asks the threads of a task whose leader has answered. Those that have told are written while others are asked.
func (d *dumper) askThreads(t *collectors.Task, emit func(told) error) error {
	for first := 0; first < len(t.Threads); first += threadsTogether {
		p := told{task: t, threads: t.Threads[first:min(first+threadsTogether, len(t.Threads))]}
		p.last = first+len(p.threads) == len(t.Threads)
		others := p.threads
		if first == 0 {
			others = others[1:]
		}
		if len(others) > 0 {
			err := d.tracer.Do(func() error { return d.tracees.AskThreads(t, others) })
			var o collectors.Obstacle
			if errors.As(err, &o) {
				d.env.Obstacles.Add(o)
				return emit(told{task: t, last: true})
			}
			if err != nil {
				return fmt.Errorf("task %d: %w", t.Pid, err)
			}
		}
		if d.env.Files.MetRings() {
			if err := d.tracer.Do(func() error { return d.env.Files.AskForRings(t, p.threads) }); err != nil {
				return fmt.Errorf("task %d: %w", t.Pid, err)
			}
		}
		if err := emit(p); err != nil {
			return err
		}
	}
	return nil
}

// refuse is where a dump that cannot be done is refused, with everything that stands in its way, before memory is stored.
// It is the end of a dry run.
func (d *dumper) refuse(s *pipeline.Stage, all []told) ([]*collectors.Task, error) {
	if err := d.env.Files.Finish(); err != nil {
		return nil, err
	}
	var tasks []*collectors.Task
	for _, p := range all {
		if p.last {
			tasks = append(tasks, p.task)
		}
	}
	if err := d.env.Files.ResolveUserfaults(tasks, d.tracer.Do); err != nil {
		return nil, err
	}
	level := slog.LevelError
	if !d.try.last && goesAway(d.env.Obstacles.Err()) {
		level = slog.LevelInfo // it may not be the end
	}
	for _, o := range d.env.Obstacles.All() {
		s.Logger().Log(s.Context(), level, o.Error())
	}
	if d.o.DryRun {
		return nil, errDryRun
	}
	return tasks, d.env.Obstacles.Err()
}

// ask puts the engine into every task and runs one program in each, all at the same time. It returns those that have
// answered: a task with an obstacle is not asked further.
func (d *dumper) ask(tasks []*collectors.Task) ([]*collectors.Task, error) {
	asked := slices.DeleteFunc(slices.Clone(tasks), func(t *collectors.Task) bool { return !t.Live() })
	steps := []func([]*collectors.Task) []error{
		each(d.tracees.Capture), d.tracees.Inject, each(d.tracees.StartAsking), each(d.tracees.FinishAsking)}
	for _, step := range steps {
		var rest []*collectors.Task
		var failed error
		for i, err := range step(asked) {
			var o collectors.Obstacle
			switch {
			case errors.As(err, &o):
				d.env.Obstacles.Add(o)
			case err != nil && failed == nil:
				failed = fmt.Errorf("task %d: %w", asked[i].Pid, err)
			case err == nil:
				rest = append(rest, asked[i])
			}
		}
		if failed != nil {
			return nil, failed
		}
		asked = rest
	}
	return asked, nil
}

// each makes a step of many tasks of a step of one. It goes on after an error: what is running in the others has to be
// finished.
func each(step func(*collectors.Task) error) func([]*collectors.Task) []error {
	return func(tasks []*collectors.Task) []error {
		errs := make([]error, len(tasks))
		for i, t := range tasks {
			errs[i] = step(t)
		}
		return errs
	}
}

// ejectAll is the undo step that takes the engine out of tasks it is still in.
func (d *dumper) ejectAll(tasks []*collectors.Task) func(context.Context) error {
	return func(context.Context) error {
		return d.tracer.Do(func() error { return d.tracees.Eject(tasks) })
	}
}

// evictions is what the guardian has to know to take the engine out of tasks.
func evictions(tasks []*collectors.Task) []pipeline.UndoRecord {
	var records []pipeline.UndoRecord
	for chunk := range slices.Chunk(tasks, pidsPerRecord) {
		var r guardian.Evict
		for _, t := range chunk {
			if t.Live() {
				r.Tasks = append(r.Tasks, guardian.Task{PID: t.Pid, StartTime: t.Stat.StartTime})
			}
		}
		records = append(records, r)
	}
	return records
}
