package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"cryo/arch"
	"cryo/internal/ptrace"
	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rseq"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Tracees asks frozen tasks what only a tracer or the task itself can tell. Its methods are called on the thread of the
// tracer that seized the tasks.
type Tracees struct {
	env     *Env
	thread  *threadProgram
	seccomp seccompTable
}

// NewTracees returns a Tracees for one dump.
func NewTracees(env *Env) *Tracees {
	return &Tracees{env: env, thread: newThreadProgram(), seccomp: newSeccompTable()}
}

// Capture reads what the kernel keeps for the tracer: registers, signal masks and queues, restartable sequences and
// seccomp filters of all threads. It goes before Inject, which would disturb some of them.
func (tr *Tracees) Capture(t *Task) error {
	for _, th := range t.Threads {
		if err := tr.captureThread(th); err != nil {
			return fmt.Errorf("thread %d: %w", th.Tid, err)
		}
	}
	leader := t.Leader()
	shared, err := pendingSignals(leader.Tid, true)
	if err != nil {
		return err
	}
	if t.State == Stopped {
		// SIGCONT will flush them, so nobody will ever see them; put back, they would stop the task twice.
		shared.Signals = withoutStops(shared.Signals)
		for _, th := range t.Threads {
			q := th.Core.ThreadCore.SignalsP
			q.Signals = withoutStops(q.Signals)
		}
	}
	t.Core.Tc.SignalsS = shared
	t.Core.Tc.BlkSigset = leader.Core.ThreadCore.BlkSigset
	return tr.seccomp.capture(t)
}

func (tr *Tracees) captureThread(th *Thread) error {
	tracee, err := remote.Capture(th.Tid)
	if err != nil {
		return err
	}
	tracee.Seccomp = th.Status.Seccomp
	th.Tracee = tracee
	if tracee.Dispatch.On() {
		return Obstacle{Pid: th.Tid, What: "it has its system calls dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH), for which images have no place"}
	}
	if names := arch.UnstorableXState(tracee.XState); len(names) > 0 {
		return Obstacle{Pid: th.Tid, What: "it uses " + strings.Join(names, ", ") + ", for which images have no place"}
	}
	if tracee.HasShadowStack() {
		return Obstacle{Pid: th.Tid, What: "it has a shadow stack, which cannot be restored"}
	}
	tc := th.Core.ThreadCore
	tc.BlkSigset = proto.Uint64(tracee.SigMask)
	if tc.SignalsP, err = pendingSignals(th.Tid, false); err != nil {
		return err
	}
	if r := tracee.Rseq; r.Pointer != 0 {
		tc.RseqEntry = &rseq.RseqEntry{
			RseqAbiPointer: proto.Uint64(r.Pointer), RseqAbiSize: proto.Uint32(r.Size), Signature: proto.Uint32(r.Signature),
		}
	}
	return nil
}

// withoutStops leaves out the signals that stop a task.
func withoutStops(queue []*siginfo.SiginfoEntry) []*siginfo.SiginfoEntry {
	return slices.DeleteFunc(queue, func(e *siginfo.SiginfoEntry) bool {
		switch syscall.Signal(binary.NativeEndian.Uint32(e.Siginfo)) {
		case syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
			return true
		}
		return false
	})
}

// pendingSignals reads a queue of signals without taking them from it.
func pendingSignals(tid int, shared bool) (*siginfo.SignalQueueEntry, error) {
	queue := &siginfo.SignalQueueEntry{}
	var batch [32]ptrace.RawSigInfo
	for off := uint64(0); ; {
		n, err := ptrace.PeekSigInfo(tid, off, shared, batch[:])
		if err != nil || n == 0 {
			return queue, err
		}
		for i := range batch[:n] {
			queue.Signals = append(queue.Signals, &siginfo.SiginfoEntry{Siginfo: append([]byte(nil), batch[i][:]...)})
		}
		off += uint64(n)
	}
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
		options[i] = remote.Options{Status: t.Leader().Status, SlotSize: slotSize, Slots: min(len(t.Threads), maxSlots+1)}
	}
	sessions, errs := remote.InjectAll(leaders, options)
	for i, t := range tasks {
		t.Session = sessions[i]
		var seccomp *remote.SeccompError
		if errors.As(errs[i], &seccomp) {
			errs[i] = Obstacle{Pid: t.Pid, What: errs[i].Error()}
		}
	}
	return errs
}

// StartAsking sets the leader telling about the task; FinishAsking takes its answers. Between the two, other tasks are
// started: they answer at the same time.
func (tr *Tracees) StartAsking(t *Task) error {
	timers, err := t.Proc.Timers()
	if err != nil && !errors.Is(err, unix.ENOENT) { // CONFIG_CHECKPOINT_RESTORE
		return err
	}
	t.asked = newTaskProgram(timers)
	return t.Session.Start(t.asked.prog)
}

// FinishAsking takes the answers of the leader about the task, then asks every thread about itself.
func (tr *Tracees) FinishAsking(t *Task) error {
	res, err := t.Session.Finish()
	if err != nil {
		return err
	}
	if err := t.asked.read(res, t); err != nil {
		return err
	}
	if res, err = t.Session.Run(tr.thread.prog); err != nil {
		return err
	}
	if err := tr.thread.read(res, t.Leader()); err != nil {
		return err
	}
	for rest := t.Threads[1:]; len(rest) > 0; {
		n := min(len(rest), maxSlots)
		if err := tr.askThreads(t, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// askThreads lets several threads of a task tell about themselves at the same time. Those that have entered are left
// again whatever happens.
func (tr *Tracees) askThreads(t *Task, threads []*Thread) (err error) {
	slots := make([]*remote.Slot, 0, len(threads))
	defer func() {
		for _, sl := range slots {
			err = errors.Join(err, sl.Leave())
		}
	}()
	for _, th := range threads {
		sl, err := t.Session.Enter(th.Tracee)
		if err != nil {
			return err
		}
		slots = append(slots, sl)
		if err := sl.Start(tr.thread.prog); err != nil {
			return err
		}
	}
	var errs []error
	for i, sl := range slots {
		res, err := sl.Finish()
		if err == nil {
			err = tr.thread.read(res, threads[i])
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Eject takes the engine out of those of the tasks that have it, all at the same time.
func (tr *Tracees) Eject(tasks []*Task) error {
	var sessions []*remote.Session
	for _, t := range tasks {
		if t.Session != nil {
			sessions = append(sessions, t.Session)
			t.Session = nil
		}
	}
	return errors.Join(remote.EjectAll(sessions)...)
}

// SeccompMode is the image's name of a mode number of the kernel.
func seccompMode(mode int) *criu_core.SeccompMode { return criu_core.SeccompMode(mode).Enum() }
