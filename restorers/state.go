package restorers

import (
	"fmt"

	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
)

// Phase is when a kind of state is restored. Within a phase kinds run in the order of StateKinds.
type Phase int

const (
	// TaskEarly is for what a task has before its threads exist, while it has every privilege: once a task, on its
	// leader.
	TaskEarly Phase = iota
	// ThreadEarly is what each thread has of its own and needs no privilege for; on every thread, the leader too.
	ThreadEarly
	// TaskLate must wait until descriptors, memory and all threads are there: limits, timers, the group's pending
	// signals. Once a task, on its leader.
	TaskLate
	// ThreadLast gives privileges away, on every thread: seccomp (while suspended), credentials, and what a change of
	// credentials resets. Only registers, signal mask and the interpreter's end come after it.
	ThreadLast
	// TaskLast is what the last change of credentials in any thread resets for the whole task. Once a task, on its
	// leader, when all its threads are through ThreadLast.
	TaskLast
)

// StateKind is one kind of state that is neither a descriptor nor memory.
type StateKind struct {
	Name  string
	Phase Phase
	// Check refuses an image before any task exists. Optional.
	Check func(*StateEmit) error
	// Emit adds the system calls that give the thread this state.
	Emit func(*StateEmit)
}

// StateEmit is what a kind restores: one thread of one task, by one program.
type StateEmit struct {
	*remote.Builder
	// Task is the core image of the leader, Thread the thread's own: the same message for the leader.
	Task, Thread *criu_core.CoreEntry
	MM           *mm.MmEntry
	// PID and TID are the ids in the tree's pid namespace.
	PID, TID int
	// Base is what the thread has from the tool.
	Base *Base
	// Filters are the seccomp filters of the whole set; nil without seccomp.img.
	Filters []*seccomp.SeccompFilter
	// Locks are the file locks of the task.
	Locks []FileLock
}

// Leader says whether the thread is the leader of its task.
func (e *StateEmit) Leader() bool { return e.PID == e.TID }

// StateKinds are all kinds; within one phase they run in this order.
var StateKinds = []StateKind{
	{Name: "personality", Phase: TaskEarly, Emit: emitPersonality},
	{Name: "signal actions", Phase: TaskEarly, Check: checkSignalActions, Emit: emitSignalActions},
	{Name: "child subreaper", Phase: TaskEarly, Emit: emitChildSubreaper},
	{Name: "login id", Phase: TaskEarly, Emit: emitLoginUID},
	{Name: "out-of-memory score", Phase: TaskEarly, Check: checkOOMScoreAdj, Emit: emitOOMScoreAdj},
	{Name: "huge pages", Phase: TaskEarly, Emit: emitHugePages},

	{Name: "name", Phase: ThreadEarly, Check: checkName, Emit: emitName},
	{Name: "tid address", Phase: ThreadEarly, Emit: emitTidAddress},
	{Name: "timer slack", Phase: ThreadEarly, Emit: emitTimerSlack},
	{Name: "robust list", Phase: ThreadEarly, Emit: emitRobustList},
	{Name: "alternate stack", Phase: ThreadEarly, Emit: emitAltStack},
	{Name: "restartable sequences", Phase: ThreadEarly, Emit: emitRseq},

	{Name: "file locks", Phase: TaskLate, Emit: emitFileLocks},
	{Name: "membarrier", Phase: TaskLate, Emit: emitMembarrier},
	{Name: "limits", Phase: TaskLate, Check: checkLimits, Emit: emitLimits},
	{Name: "interval timers", Phase: TaskLate, Check: checkIntervalTimers, Emit: emitIntervalTimers},
	{Name: "POSIX timers", Phase: TaskLate, Check: checkPosixTimers, Emit: emitPosixTimers},
	{Name: "pending signals of the task", Phase: TaskLate, Check: checkSharedSignals, Emit: emitSharedSignals},

	{Name: "pending signals", Phase: ThreadLast, Check: checkPrivateSignals, Emit: emitPrivateSignals},
	{Name: "scheduling", Phase: ThreadLast, Check: checkScheduling, Emit: emitScheduling},
	{Name: "seccomp", Phase: ThreadLast, Check: checkSeccomp, Emit: emitSeccomp},
	{Name: "credentials", Phase: ThreadLast, Check: checkCredentials, Emit: emitCredentials},
	{Name: "parent-death signal", Phase: ThreadLast, Emit: emitParentDeathSignal},

	{Name: "dumpable", Phase: TaskLast, Emit: emitDumpable},
}

// EmitState adds all that a thread does in a phase to its program. The phases named Task are for leaders.
func EmitState(phase Phase, e *StateEmit) {
	for _, kind := range StateKinds {
		if kind.Phase == phase {
			kind.Emit(e)
		}
	}
}

// CheckState refuses state that cannot be restored, while no task exists.
func CheckState(e *StateEmit) error {
	for _, kind := range StateKinds {
		if kind.Check == nil {
			continue
		}
		if err := kind.Check(e); err != nil {
			return fmt.Errorf("image core-%d.img: %s: %w", e.TID, kind.Name, err)
		}
	}
	return nil
}
