package collectors

import (
	"errors"
	"slices"
	"time"

	"cryo/internal/ptrace"
	"cryo/internal/remote"
)

// Tracees asks frozen tasks what only a tracer or the task itself can tell. Its methods are called on the thread of the
// tracer that seized the tasks.
type Tracees struct {
	env     *Env
	task    *question[*Task] // the last task was asked
	same    string           // its sameness
	thread  *question[*Thread]
	seccomp seccompTable
}

// NewTracees returns a Tracees for one dump.
func NewTracees(env *Env) *Tracees {
	return &Tracees{env: env, thread: newThreadQuestion(), seccomp: newSeccompTable()}
}

// TraceOptions are the ptrace options that threads of a frozen tree have been seized with.
const TraceOptions = ptrace.OptSysGood

// Capture reads what the kernel keeps for the tracer. It goes before Inject, which would disturb some of it.
func (tr *Tracees) Capture(t *Task) error {
	for _, k := range StateKinds {
		if k.Trace == nil {
			continue
		}
		if err := k.Trace(tr, t); err != nil {
			return err
		}
	}
	return nil
}

const (
	// slotSize is room for the longest program, a task's with some timers; longer ones are split.
	slotSize = 16 << 10
	// maxSlots is how many threads of one task are asked at the same time.
	maxSlots = 16
)

// Inject puts the engine into captured tasks, all at the same time. Each has an error or none.
func (tr *Tracees) Inject(tasks []*Task) []error {
	leaders, options := make([]*remote.Thread, len(tasks)), make([]remote.Options, len(tasks))
	for i, t := range tasks {
		leaders[i] = t.Leader().Tracee
		options[i] = remote.Options{Status: t.Leader().Status, SlotSize: slotSize, Slots: min(len(t.Threads), maxSlots+1),
			Mappings: t.Memory.maps, Shared: t.SharesMemory != nil}
	}
	sessions, errs := make([]*remote.Session, len(tasks)), make([]error, len(tasks))
	for _, turn := range turns(tasks) {
		some, failed := remote.InjectAll(pick(leaders, turn), pick(options, turn))
		for i, at := range turn {
			sessions[at], errs[at] = some[i], failed[i]
		}
	}
	for i, t := range tasks {
		t.Session = sessions[i]
		var seccomp *remote.SeccompError
		if errors.As(errs[i], &seccomp) {
			errs[i] = Obstacle{Pid: t.Pid, What: errs[i].Error()}
		}
	}
	return errs
}

// StartAsking sets the leader telling about the task and itself; FinishAsking takes its answers and has to follow. Between
// the two, other tasks are started: they answer at the same time.
func (tr *Tracees) StartAsking(t *Task) error {
	if same := t.sameness(); tr.task == nil || tr.same != same { // most tasks of a tree are as those next to them
		tr.task, tr.same = newTaskQuestion(t), same
	}
	t.asked, t.askedAt = tr.task, time.Now()
	return t.Session.Start(t.asked.prog)
}

// FinishAsking takes the answers of the leader.
func (tr *Tracees) FinishAsking(t *Task) error {
	res, err := t.Session.Finish()
	if err == nil {
		err = t.asked.read(res, t)
	}
	if err == nil {
		err = lateSignals(t, t.askedAt)
	}
	return err
}

// AskThreads asks threads of a task that has answered, none of them the leader, about themselves.
func (tr *Tracees) AskThreads(t *Task, threads []*Thread) error {
	for some := range slices.Chunk(threads, maxSlots) {
		if err := tr.askThreads(t, some); err != nil {
			return err
		}
	}
	return nil
}

// askThreads lets several threads of a task tell about themselves at the same time. Each that has been started is
// finished, and each that has entered is left, whatever happens.
func (tr *Tracees) askThreads(t *Task, threads []*Thread) error {
	var errs []error
	var started []*remote.Slot
	for _, th := range threads {
		sl, err := t.Session.StartOn(th.Tracee, tr.thread.prog)
		if err != nil {
			errs = append(errs, err)
			break
		}
		started = append(started, sl)
	}
	for i, sl := range started {
		res, err := sl.Finish()
		if err == nil {
			err = tr.thread.read(res, threads[i])
		}
		errs = append(errs, err, sl.Leave())
	}
	return errors.Join(errs...)
}

// Eject takes the engine out of those of the tasks that have it, all at the same time.
func (tr *Tracees) Eject(tasks []*Task) error {
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t *Task) bool { return t.Session == nil })
	var errs []error
	for _, turn := range turns(tasks) {
		sessions := make([]*remote.Session, len(turn))
		for i, at := range turn {
			sessions[i] = tasks[at].Session
			tasks[at].Session = nil
		}
		errs = append(errs, remote.EjectAll(sessions)...)
	}
	return errors.Join(errs...)
}

// turns divides tasks among which some share their memory: the engine's way in and out leads through the stack there, by
// which one task goes at a time. It returns indices.
func turns(tasks []*Task) [][]int {
	var first []int
	var rest [][]int
	for i, t := range tasks {
		if t.SharesMemory == nil {
			first = append(first, i)
		} else {
			rest = append(rest, []int{i})
		}
	}
	return append([][]int{first}, rest...)
}

func pick[T any](all []T, indices []int) []T {
	some := make([]T, len(indices))
	for i, at := range indices {
		some[i] = all[at]
	}
	return some
}
