package stages

import (
	"errors"
	"fmt"

	"cryo/collectors"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// giver gives a tree away whose set is complete. Before it says the word after which the other side may let its tree run, it
// calls committed; from then on only the other side can say that the tree is ours again. there says that the other side has it.
// An error says why not; errInDoubt, that nobody knows.
type giver func(s *pipeline.Stage, committed func() error) (there bool, err error)

// errInDoubt marks a tree that has been given away and of which nobody can say whether it has arrived.
var errInDoubt = errors.New("the tree is left stopped: if it does not run at the destination, SIGCONT lets it go on here; if it does, SIGKILL ends it here")

// handOver gives the tree away. What finish does with the one here depends on how that ends.
func (d *dumper) handOver(s *pipeline.Stage, v valid) (valid, error) {
	committed := false
	_, err := d.give(s, func() error {
		committed = true
		return d.hold(v.tasks)
	})
	switch {
	case err == nil:
		return v, nil
	case !committed:
		return v, err
	case !errors.Is(err, errInDoubt):
		err = errors.Join(err, eachRunning(v.tasks, unix.SIGCONT))
	}
	d.postFailed = err
	return v, nil
}

// hold has the tree stay as it is even if the tool dies: it stops when nobody traces it any more, and the guardian does not let
// it go on but only takes out what does not belong into it.
func (d *dumper) hold(tasks []*collectors.Task) (err error) {
	if err := eachRunning(tasks, unix.SIGSTOP); err != nil {
		return err
	}
	d.held, err = d.pointOfNoReturn(evictions(tasks))
	return err
}

// eachRunning sends a signal to the tasks that were not stopped when they were frozen.
func eachRunning(tasks []*collectors.Task, sig unix.Signal) error {
	for _, t := range tasks {
		if !t.Live() || t.State == collectors.Stopped {
			continue
		}
		if err := unix.Kill(t.Pid, sig); err != nil {
			return fmt.Errorf("send %v to task %d: %w", sig, t.Pid, err)
		}
	}
	return nil
}
