package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cryo/collectors"
	"cryo/internal/netlock"
	"cryo/internal/options"
	"cryo/pipeline"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
)

// valid is a tree whose set is complete.
type valid struct {
	tasks []*collectors.Task
	inv   *inventory.InventoryEntry
}

// clockLag is how far the time stamps of files may be behind the clock.
const clockLag = 20 * time.Millisecond

// ownSet puts the removal of everything the dump writes on the undo stack. It comes before the first file.
func (d *dumper) ownSet() error {
	remove := func(context.Context) error { return d.sink.Abort() }
	if d.images == nil {
		return d.pushUndo("remove the set", remove)
	}
	return d.pushUndo("remove the set", remove, removeSet{Dir: d.images, Since: d.began.Add(-clockLag).UnixNano()})
}

// letGo stores what memory tasks share and emits the tasks. After that nothing more is asked of them: a tree that is to
// run on anyway is let go here, and the images are written beside it.
func (d *dumper) letGo(s *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	if err := d.memory.shared(s); err != nil {
		return err
	}
	// What is found only while memory is read refuses the dump here.
	if err := d.env.Obstacles.Err(); err != nil {
		return err
	}
	if d.runsOn() {
		steps := append(d.reconnecting, d.ejecting, d.thawing)
		if d.doors != nil {
			steps = append(steps, d.doors)
		}
		for _, step := range steps {
			if err := step.Run(s.Context()); err != nil {
				return err
			}
		}
		d.gone = true
		d.frozen()
	}
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// commit makes the set valid. The tree still stands still and can go on.
func (d *dumper) commit(s *pipeline.Stage, v valid) (valid, error) {
	if err := d.sink.Commit(v.inv); err != nil {
		return v, fmt.Errorf("complete the image set: %w", err)
	}
	d.keep(s)
	d.postFailed = d.scripts.Run(s.Context(), postDump)
	return v, nil
}

// finish is past the point of no return: it ends the tree, or lets it go. What is left to do is given to the guardian
// first, so that it is done even if the tool is killed here.
func (d *dumper) finish(_ *pipeline.Stage, v valid) error {
	if d.gone {
		return d.undo.Commit()
	}
	defer d.frozen()
	if d.held != nil {
		defer d.held()
	}
	final := d.o.Final
	switch {
	case errors.Is(d.postFailed, errInDoubt):
		final = options.LeaveStopped
	case d.postFailed != nil:
		final = options.LeaveRunning
	}
	if final == options.Kill {
		return d.endTree(v.tasks)
	}
	records := evictions(v.tasks)
	paused := d.freezer.group != nil && d.freezer.group.Found() // tasks go back to the ice they were taken from
	if paused {
		records = append(records, d.groupRecord())
	}
	records = append(records, d.reconnections()...)
	forget, err := d.pointOfNoReturn(records)
	defer forget()
	if err != nil {
		return err
	}
	if err := d.reconnect(); err != nil {
		return err
	}
	if err := d.ejectAll(v.tasks)(context.Background()); err != nil {
		return err
	}
	if paused {
		if err := d.freezer.group.Leave(); err != nil {
			return err
		}
	}
	return d.tracer.Do(func() error {
		if final == options.LeaveStopped {
			return d.freezer.stop()
		}
		return d.freezer.thaw()
	})
}

// endTree kills all tasks.
func (d *dumper) endTree(tasks []*collectors.Task) error {
	records := d.silences()
	for chunk := range slices.Chunk(tasks, pidsPerRecord) {
		var r killTasks
		for _, t := range chunk {
			if t.Live() {
				r.Tasks = append(r.Tasks, taskID{t.Pid, t.Stat.StartTime})
			}
		}
		records = append(records, r)
	}
	if d.doors != nil {
		records = append(records, netlock.Record(d.entrance))
	}
	forget, err := d.pointOfNoReturn(records)
	defer forget()
	if err != nil {
		return err
	}
	if err := d.silence(); err != nil {
		return err
	}
	err = d.tracer.Do(d.freezer.kill)
	d.frozen() // what is dead does not stand still
	if d.ended = true; d.doors != nil {
		d.reap()
	}
	return errors.Join(err, d.openDoors())
}

// reap waits for the end of the tree, if it has been killed. The kernel takes its time to tear it down, in which the tool
// can do the last of its work.
func (d *dumper) reap() {
	if !d.ended {
		return
	}
	d.ended = false
	d.tracer.Do(func() error {
		d.freezer.reap()
		return nil
	})
}

// pointOfNoReturn gives the guardian what is to be done from here on and drops what would have been taken back; forget
// tells the guardian that all has been done.
func (d *dumper) pointOfNoReturn(records []pipeline.UndoRecord) (forget func(), err error) {
	var forgets []func()
	forget = func() {
		for _, f := range forgets {
			f()
		}
	}
	guard, err := d.guard.wait()
	if guard == nil {
		return forget, errors.Join(err, d.undo.Commit())
	}
	for _, r := range records {
		f, err := guard.Finish(r)
		if err != nil {
			return forget, err
		}
		forgets = append(forgets, f)
	}
	return forget, d.undo.Commit()
}
