package stages

import (
	"context"
	"errors"
	"fmt"
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

// parasiteState asks all tasks about themselves and emits them.
func (d *dumper) parasiteState(_ *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) (err error) {
	d.ejecting, err = d.undo.Push("take the parasites out", 0, d.ejectAll(tasks), evictions(tasks)...)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(tasks, askedTogether) {
		if err := d.tracer.Do(func() error { return d.ask(chunk) }); err != nil {
			return err
		}
		for _, t := range chunk {
			if err := emit(t); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuse is where a dump that cannot be done is refused, with everything that stands in its way, before memory is stored.
// It is the end of a dry run.
func (d *dumper) refuse(s *pipeline.Stage, tasks []*collectors.Task) ([]*collectors.Task, error) {
	if err := d.env.Files.Finish(); err != nil {
		return nil, err
	}
	for _, o := range d.env.Obstacles.All() {
		s.Logger().Error(o.Error())
	}
	if d.o.DryRun {
		return nil, errDryRun
	}
	return tasks, d.env.Obstacles.Err()
}

// ask puts the engine into every task, runs one program in each, all at the same time, and then one in every thread. A
// task with an obstacle is not asked further.
func (d *dumper) ask(tasks []*collectors.Task) error {
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
			return failed
		}
		asked = rest
	}
	return nil
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
