package collectors

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"unique"

	"cryo/arch"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/internal/spread"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	img_fs "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rseq"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// readThreads makes the core images of a task and its threads, and reads the status of each; that of the task is there.
func readThreads(t *Task) error {
	t.Core = newCore()
	t.Core.Tc = &criu_core.TaskCoreEntry{
		TaskState: proto.Uint32(uint32(t.State)), ExitCode: proto.Uint32(0), Flags: proto.Uint32(uint32(t.Stat.Flags)),
		Comm: proto.String(t.Stat.Comm), BlkSigset: proto.Uint64(0),
	}
	if t.State == Stopped {
		t.Core.Tc.StopSigno = proto.Uint32(uint32(t.StopSignal))
	}
	t.FS = &img_fs.FsEntry{}
	if t.Status.Umask >= 0 {
		t.FS.Umask = proto.Uint32(uint32(t.Status.Umask))
	}
	return spread.Range(len(t.Threads), threadChunk, func(i int) error { return readThread(t, t.Threads[i]) })
}

// threadChunk is how many threads are read at a time.
const threadChunk = 32

// readThread reads what /proc tells of one thread.
func readThread(t *Task, th *Thread) (err error) {
	th.Core, th.Status = t.Core, t.Status
	if th != t.Leader() {
		th.Core = newCore()
		if th.Status, err = t.Proc.ThreadStatus(th.Tid); err != nil {
			return err
		}
	}
	th.VTid = th.Tid
	if n := len(th.Status.NSpid); n > 0 {
		th.VTid = th.Status.NSpid[n-1]
	}
	groups, err := t.Proc.Read("task/" + strconv.Itoa(th.Tid) + "/cgroup")
	th.cgroups = unique.Make(string(groups))
	return err
}

// traceThreads captures the registers of all threads and what else comes with them: signal mask and restartable sequence.
func traceThreads(_ *Tracees, t *Task) error {
	for _, th := range t.Threads {
		tracee, err := remote.Capture(th.Tid)
		if err != nil {
			return err
		}
		tracee.Seccomp, tracee.Options = th.Status.Seccomp, TraceOptions
		th.Tracee = tracee
		if err := unstorable(tracee); err != nil {
			return err
		}
		th.Core.ThreadCore.BlkSigset = proto.Uint64(tracee.SigMask)
		if r := tracee.Rseq; r.Pointer != 0 {
			th.Core.ThreadCore.RseqEntry = &rseq.RseqEntry{
				RseqAbiPointer: proto.Uint64(r.Pointer), RseqAbiSize: proto.Uint32(r.Size), Signature: proto.Uint32(r.Signature),
			}
		}
	}
	t.Core.Tc.BlkSigset = t.Leader().Core.ThreadCore.BlkSigset
	return nil
}

// unstorable refuses what a thread may have and images have no place for.
func unstorable(t *remote.Thread) error {
	if t.Dispatch.On() {
		return Obstacle{Pid: t.TID, What: "it has its system calls dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH), for which images have no place"}
	}
	if names := arch.UnstorableXState(t.XState); len(names) > 0 {
		return Obstacle{Pid: t.TID, What: "it uses " + strings.Join(names, ", ") + ", for which images have no place"}
	}
	if t.HasShadowStack() {
		return Obstacle{Pid: t.TID, What: "it has a shadow stack, which cannot be restored"}
	}
	return nil
}

// askThread asks what the kernel has been told to do when the thread ends, and puts its registers into the image.
func askThread(b *remote.Builder) Answer[*Thread] {
	tidAddr, robust, robustLen := b.Zero(8), b.Zero(8), b.Zero(8)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_TID_ADDRESS), tidAddr).Allow(unix.EINVAL) // CONFIG_CHECKPOINT_RESTORE
	b.Call(unix.SYS_GET_ROBUST_LIST, remote.Imm(0), robust, robustLen).Allow(unix.ENOSYS)   // CONFIG_FUTEX
	return func(r *remote.Results, th *Thread) error {
		tc := th.Core.ThreadCore
		tc.FutexRla, tc.FutexRlaLen = proto.Uint64(r.Uint64(robust)), proto.Uint32(r.Uint32(robustLen))
		return stored(th).ToCore(th.Core, r.Uint64(tidAddr))
	}
}

// stored is the processor state of a thread for its image.
func stored(th *Thread) *arch.State {
	s := th.Tracee.State
	if at, n := s.Regs.RestartedText(); n > 0 {
		text := make([]byte, n)
		if ptrace.ReadMemory(th.Tid, at, text) != nil || !s.Regs.NameRestarted(text) {
			slog.Warn(fmt.Sprintf("Thread %d is in a system call that was interrupted twice and cannot be told: it will return EINTR", th.Tid))
		}
	}
	return &s
}
