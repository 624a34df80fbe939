package collectors

import (
	"cryo/internal/remote"
)

// StateKind is one kind of state that is neither a descriptor nor memory: the dump half. Every part is optional. A kind
// has its file, and the restore half has one of the same name.
type StateKind struct {
	Name string
	// Read takes what /proc and system calls tell of a task from outside. It may run for several tasks at once.
	Read func(*Task) error
	// Trace takes what the kernel tells a tracer. It runs on the tracer's thread, before anything is injected.
	Trace func(*Tracees, *Task) error
	// AskTask adds what the leader is asked about its task to the one program it runs. Tasks with the same sameness are
	// asked the same: no answer may keep anything else of the task it was made for.
	AskTask func(*remote.Builder, *Task) Answer[*Task]
	// AskThread adds what each thread is asked about itself to the one program all of them run.
	AskThread func(*remote.Builder) Answer[*Thread]
}

// Answer reads what a task or thread said to what it was asked.
type Answer[T any] func(*remote.Results, T) error

// StateKinds are all kinds, in the order in which they are read and asked: the first makes the images the others fill.
var StateKinds = []StateKind{
	{Name: "thread", Read: readThreads, Trace: traceThreads, AskThread: askThread},
	{Name: "mm", Read: readMM, AskTask: askMM},
	{Name: "creds", Read: readCreds, AskThread: askCreds},
	{Name: "namespaces", Read: readNamespaces},
	{Name: "procself", Read: readProcSelf},
	{Name: "rlimit", Read: readRlimits},
	{Name: "signals", Trace: traceSignals, AskTask: askSignals, AskThread: askAltStack},
	{Name: "seccomp", Trace: traceSeccomp},
	{Name: "timers", Read: readTimers, AskTask: askTimers},
	{Name: "descriptors", AskTask: askDescriptors},
	{Name: "sched", AskThread: askSched},
	{Name: "prctl", AskTask: askPrctls, AskThread: askThreadPrctls},
}

// CollectStat fills what can be told of a live task from outside. It may run for several tasks at once.
func CollectStat(t *Task) error {
	for _, k := range StateKinds {
		if k.Read == nil {
			continue
		}
		if err := k.Read(t); err != nil {
			return err
		}
	}
	return nil
}

// question is a program with what reads its answers.
type question[T any] struct {
	prog    *remote.Program
	answers []Answer[T]
}

func (q *question[T]) read(r *remote.Results, subject T) error {
	for _, answer := range q.answers {
		if err := answer(r, subject); err != nil {
			return err
		}
	}
	return nil
}

// newThreadQuestion is what every thread but the leader is asked: one program, one stop a thread, whatever it has to tell.
func newThreadQuestion() *question[*Thread] {
	b := remote.NewBuilder("state of a thread")
	q := &question[*Thread]{}
	for _, k := range StateKinds {
		if k.AskThread != nil {
			q.answers = append(q.answers, k.AskThread(b))
		}
	}
	q.prog = b.Program()
	return q
}

// newTaskQuestion is what the leader of a task is asked: about the whole task and, as any thread, about itself.
func newTaskQuestion(t *Task) *question[*Task] {
	b := remote.NewBuilder("state of a task")
	q := &question[*Task]{}
	for _, k := range StateKinds {
		if k.AskTask != nil {
			q.answers = append(q.answers, k.AskTask(b, t))
		}
	}
	for _, k := range StateKinds {
		if k.AskThread != nil {
			answer := k.AskThread(b)
			q.answers = append(q.answers, func(r *remote.Results, t *Task) error { return answer(r, t.Leader()) })
		}
	}
	q.prog = b.Program()
	return q
}
