package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cryo/collectors"
	"cryo/pipeline"
)

// errDryRun ends a dry run, which takes everything back, where a dump would begin to store memory.
var errDryRun = errors.New("dry run")

// parasiteState asks all tasks about themselves and emits them. It is where a dump that cannot be done is refused, with
// everything that stands in its way, before memory is stored.
func (d *dumper) parasiteState(s *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	records := evictions(tasks)
	if err := d.pushUndo("take the parasites out", d.ejectAll(tasks), records...); err != nil {
		return err
	}
	if err := d.tracer.Do(func() error { return d.ask(tasks) }); err != nil {
		return err
	}
	for _, o := range d.env.Obstacles.All() {
		s.Logger().Error(o.Error())
	}
	if d.o.DryRun {
		return errDryRun
	}
	if err := d.env.Obstacles.Err(); err != nil {
		return err
	}
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// ask runs one program in every task, all at the same time, and then one in every thread.
func (d *dumper) ask(tasks []*collectors.Task) error {
	steps := []func(*collectors.Task) error{d.tracees.Capture, d.tracees.Inject, d.tracees.StartAsking, d.tracees.FinishAsking}
	skip := map[*collectors.Task]bool{}
	for _, step := range steps {
		for _, t := range tasks {
			if !t.Live() || skip[t] {
				continue
			}
			err := step(t)
			var o collectors.Obstacle
			if errors.As(err, &o) {
				d.env.Obstacles.Add(o)
				skip[t] = true
				continue
			}
			if err != nil {
				return fmt.Errorf("task %d: %w", t.Pid, err)
			}
		}
	}
	return nil
}

// ejectAll is the undo step that takes the engine out of tasks it is still in.
func (d *dumper) ejectAll(tasks []*collectors.Task) func(context.Context) error {
	return func(context.Context) error {
		return d.tracer.Do(func() error {
			var errs []error
			for _, t := range tasks {
				errs = append(errs, d.tracees.Eject(t))
			}
			return errors.Join(errs...)
		})
	}
}

// evictions is what the guardian has to know to take the engine out of tasks.
func evictions(tasks []*collectors.Task) []pipeline.UndoRecord {
	var records []pipeline.UndoRecord
	for chunk := range slices.Chunk(tasks, pidsPerRecord) {
		var r evict
		for _, t := range chunk {
			if t.Live() {
				r.Pids = append(r.Pids, t.Pid)
			}
		}
		records = append(records, r)
	}
	return records
}
