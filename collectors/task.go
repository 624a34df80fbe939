package collectors

import (
	"cmp"
	"cryo/internal/objid"
	"cryo/internal/poll"
	"cryo/internal/procfs"
	"cryo/internal/remote"
	"fmt"
	"sync"
	"time"
	"unique"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
)

// State is what a task is doing in the image (the values of criu's task_state).
type State uint32

const (
	// Alive is a task that runs or sleeps.
	Alive State = 1
	// Dead is a zombie: it has an exit status and a place in the tree, and nothing else.
	Dead State = 2
	// Stopped is a task in group stop (SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU).
	Stopped State = 3
)

// Task is one process of the tree that is being dumped.
type Task struct {
	// Pid is the process id as the tool sees it; every /proc path and ptrace call uses it.
	Pid int
	// VPid, PGid and Sid are the ids in the tree's own pid namespace: the numbers that images carry.
	VPid, PGid, Sid int
	// PidLevel is how many pid namespaces lie between the tool's and the task's own, with that one.
	PidLevel int
	State    State
	// ExitCode is the wait status of a zombie.
	ExitCode int
	// StopSignal is the signal that stopped a Stopped task.
	StopSignal int

	Parent   *Task // nil for the root of the tree
	Children []*Task
	// Threads lists all threads in order of tid; the leader is always first. Empty for a zombie.
	Threads []*Thread
	// Workers are the ids of threads that are the kernel's own: those that do the work of an io_uring. They stand still
	// with the task and are no part of the image; nothing can run in them.
	Workers []int

	// Proc is the open /proc/PID; it stays valid (and answers ESRCH) if the pid is reused.
	Proc   *procfs.Dir
	Stat   *procfs.Stat
	Status *procfs.Status // nil for a zombie

	// IDs name the kernel objects the task uses; tasks that share one have the same number.
	IDs objid.Kobj
	// Kobj is the image of IDs together with the numbers of the namespaces.
	Kobj *criu_core.TaskKobjIdsEntry
	// SharesFiles is the earlier task whose descriptor table this one shares; FDs is then empty.
	SharesFiles *Task
	FDs         []*fdinfo.FdinfoEntry
	// SharesMemory is the earlier task whose memory this one shares (clone with CLONE_VM); it has none of its own.
	SharesMemory *Task

	// Memory is the address space as listed before anything was injected; nil for a zombie.
	Memory *Memory
	// MM is the memory image. Its Vmas are filled from Memory, the rest by CollectMM.
	MM *mm.MmEntry
	// FS names the working directory and the root.
	FS *fs.FsEntry
	// Core is the leader's core image; the threads' are in Threads.
	Core *criu_core.CoreEntry

	// Session is the engine in the task, from parasite-state to parasite-mem; programs run on the tracer's thread only.
	Session *remote.Session

	// Forked says that the task may share pages with others: it was forked, or has forked, and neither has executed a program
	// since.
	Forked bool

	namespaces  taskNamespaces
	posixTimers []procfs.Timer
	asked       *question[*Task] // running in the task
	askedAt     time.Time        // when that began
	fsTypes     sync.Map         // device: magic number of its filesystem
	pidfd       int              // opened on first use; 0 is none
	positions   []filePosition   // of files, as the descriptors were looked at
	ids         *objid.Allocator // by which they were told apart
	peeks       bool             // the guardian knows that queues of its sockets are looked into
}

// Leader is the thread-group leader.
func (t *Task) Leader() *Thread { return t.Threads[0] }

// HasMemory says whether the task has memory of its own, which nobody has stored before it.
func (t *Task) HasMemory() bool { return t.Live() && t.SharesMemory == nil }

// FindShared finds out which tasks share the memory of their parents, where nothing else is asked of them.
func FindShared(tasks []*Task) error {
	for _, t := range tasks {
		if !t.Live() || t.Parent == nil || !t.Parent.Live() {
			continue
		}
		same, err := objid.Same(objid.VM, objid.Ref{Pid: t.Pid}, objid.Ref{Pid: t.Parent.Pid})
		if err != nil {
			return err
		}
		if same {
			t.SharesMemory = cmp.Or(t.Parent.SharesMemory, t.Parent)
		}
	}
	return nil
}

// Close gives back what the tool holds of the task.
func (t *Task) Close() {
	if t.pidfd != 0 {
		unix.Close(t.pidfd)
		t.pidfd = 0
	}
	if t.Proc != nil {
		t.Proc.Close()
		t.Proc = nil
	}
}

// Pidfd is a pidfd of the task (Linux 5.3), which is the task's to close. It is opened while the task stands still.
func (t *Task) Pidfd() (int, error) {
	if t.pidfd == 0 {
		pidfd, err := unix.PidfdOpen(t.Pid, 0)
		if err != nil {
			return -1, fmt.Errorf("pidfd_open of task %d: %w", t.Pid, err)
		}
		t.pidfd = pidfd
	}
	return t.pidfd, nil
}

// ended says whether the task has ended since its pidfd was opened.
func (t *Task) ended() bool {
	ready, err := poll.Now(t.pidfd, unix.POLLIN)
	return err != nil || ready != 0
}

// ForgetAnswers lets go of what is needed no more when the cores of some threads are written. What takes the engine out
// of the leader stays.
func (t *Task) ForgetAnswers(threads []*Thread) {
	for _, th := range threads {
		th.Core, th.Status = nil, nil
		if th == t.Leader() {
			t.Core, t.asked = nil, nil
		} else {
			th.Tracee = nil
		}
	}
}

// Live says whether the task has state beyond its exit status.
func (t *Task) Live() bool { return t.State != Dead }

// Thread is one thread of a task.
type Thread struct {
	// Tid is the thread id as the tool sees it, VTid in the tree's pid namespace.
	Tid, VTid int
	Status    *procfs.Status
	// Core is the thread's own core image; that of the leader is the task's.
	Core *criu_core.CoreEntry
	// Tracee is the thread's captured state.
	Tracee *remote.Thread

	cgroups unique.Handle[string] // as /proc tells it
}

// vtid translates a thread id to the tree's namespace; 0 if the task has no such thread.
func (t *Task) vtid(tid int) int {
	if th := t.thread(tid); th != nil {
		return th.VTid
	}
	return 0
}

// thread is the thread with an id as the tool sees it, nil for none.
func (t *Task) thread(tid int) *Thread {
	for _, th := range t.Threads {
		if th.Tid == tid {
			return th
		}
	}
	return nil
}
