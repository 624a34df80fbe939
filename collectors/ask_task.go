package collectors

import (
	"encoding/binary"
	"errors"

	"cryo/internal/procfs"
	"cryo/internal/remote"

	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// numSignals is SIGRTMAX; there are actions for all but SIGKILL and SIGSTOP.
const numSignals = 64

// sizeofSigaction is the kernel's struct sigaction: handler, flags, restorer, mask, eight bytes each.
const sizeofSigaction = 32

// membarrierGetRegistrations is MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3).
const membarrierGetRegistrations = 1 << 9

// taskProgram is what the leader of a task is asked about the whole task.
type taskProgram struct {
	prog *remote.Program

	sigactions                            remote.Ref // numSignals of sizeofSigaction
	itimers                               remote.Ref // three struct itimerval
	brk, dumpable, thp, membarrier, umask remote.Op
	subreaper                             remote.Ref
	timers                                []procfs.Timer
	settings                              remote.Ref // a struct itimerspec for each timer
	overruns                              []remote.Op
}

func newTaskProgram(timers []procfs.Timer) *taskProgram {
	const sizeofItimer = 32 // struct itimerval and struct itimerspec alike
	b := remote.NewBuilder("state of a task")
	t := &taskProgram{timers: timers}
	t.sigactions = b.Zero(numSignals * sizeofSigaction)
	for sig := 1; sig <= numSignals; sig++ {
		if sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) {
			b.Call(unix.SYS_RT_SIGACTION, remote.Imm(sig), remote.Imm(0), t.sigactions.At((sig-1)*sizeofSigaction), remote.Imm(8)).Must().Discard()
		}
	}
	t.itimers = b.Zero(3 * sizeofItimer)
	for which := range 3 {
		b.Call(unix.SYS_GETITIMER, remote.Imm(which), t.itimers.At(which*sizeofItimer)).Must().Discard()
	}
	t.brk = b.Call(unix.SYS_BRK, remote.Imm(0))
	t.dumpable = b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_DUMPABLE)).Must()
	t.thp = b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_THP_DISABLE)).Allow(unix.EINVAL)
	t.subreaper = b.Zero(8)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_CHILD_SUBREAPER), t.subreaper).Must()
	t.membarrier = b.Call(unix.SYS_MEMBARRIER, remote.Imm(membarrierGetRegistrations), remote.Imm(0), remote.Imm(0))
	t.settings = b.Zero(max(1, len(timers)) * sizeofItimer)
	for i, tm := range timers {
		b.Call(unix.SYS_TIMER_GETTIME, remote.Imm(tm.ID), t.settings.At(i*sizeofItimer)).Must().Discard()
		t.overruns = append(t.overruns, b.Call(unix.SYS_TIMER_GETOVERRUN, remote.Imm(tm.ID)).Must())
	}
	t.prog = b.Program()
	return t
}

// read puts a task's answers into its core and mm images.
func (t *taskProgram) read(r *remote.Results, task *Task) error {
	tc := task.Core.Tc
	tc.Sigactions = readSigactions(r.Bytes(t.sigactions))
	timers, err := t.readTimers(r, task)
	if err != nil {
		return err
	}
	tc.Timers = timers
	tc.ChildSubreaper = proto.Bool(r.Uint32(t.subreaper) != 0)
	if mask, ok := r.Raw(t.membarrier); ok && mask > 0 {
		tc.MembarrierRegistrationMask = proto.Uint32(uint32(mask))
	}
	brk, ok := r.Raw(t.brk)
	dumpable, err := r.Value(t.dumpable)
	if err != nil || !ok {
		return errors.Join(err, errors.New("the task did not tell its program break"))
	}
	task.MM.MmBrk = proto.Uint64(uint64(brk))
	task.MM.Dumpable = proto.Int32(int32(dumpable))
	thp, _ := r.Raw(t.thp)
	task.MM.ThpDisabled = proto.Bool(thp > 0)
	return nil
}

func readSigactions(b []byte) []*criu_sa.SaEntry {
	list := make([]*criu_sa.SaEntry, 0, numSignals-2)
	for sig := 1; sig <= numSignals; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue
		}
		sa := b[(sig-1)*sizeofSigaction:]
		word := func(i int) *uint64 { return proto.Uint64(binary.NativeEndian.Uint64(sa[8*i:])) }
		list = append(list, &criu_sa.SaEntry{
			Sigaction: word(0), Flags: word(1), Restorer: word(2), Mask: word(3), CompatSigaction: proto.Bool(false),
		})
	}
	return list
}

// readTimers makes the entries of interval and POSIX timers. The time left is as of the freeze, so it does not run on
// while the task is stopped or in its images.
func (t *taskProgram) readTimers(r *remote.Results, task *Task) (*timer.TaskTimersEntry, error) {
	words := func(ref remote.Ref, i int) [4]uint64 {
		var w [4]uint64
		for j := range w {
			w[j] = r.Uint64(ref.At(32*i + 8*j))
		}
		return w
	}
	interval := func(i int) *timer.ItimerEntry {
		w := words(t.itimers, i)
		return &timer.ItimerEntry{Isec: proto.Uint64(w[0]), Iusec: proto.Uint64(w[1]), Vsec: proto.Uint64(w[2]), Vusec: proto.Uint64(w[3])}
	}
	e := &timer.TaskTimersEntry{Real: interval(0), Virt: interval(1), Prof: interval(2)}
	for i, tm := range t.timers {
		w := words(t.settings, i)
		overrun, err := r.Value(t.overruns[i])
		if err != nil {
			return nil, err
		}
		p := &timer.PosixTimerEntry{
			ItId: proto.Uint32(uint32(tm.ID)), ClockId: proto.Uint32(uint32(tm.Clock)),
			SiSigno: proto.Uint32(uint32(tm.Signal)), ItSigevNotify: proto.Uint32(uint32(tm.Notify)),
			SivalPtr: proto.Uint64(tm.Value), Overrun: proto.Uint32(uint32(overrun)),
			Isec: proto.Uint64(w[0]), Insec: proto.Uint64(w[1]), Vsec: proto.Uint64(w[2]), Vnsec: proto.Uint64(w[3]),
		}
		if tm.Thread {
			const sigevThreadID = 4
			p.ItSigevNotify = proto.Uint32(uint32(tm.Notify | sigevThreadID))
			p.NotifyThreadId = proto.Int32(int32(task.vtid(tm.Tid)))
		}
		e.Posix = append(e.Posix, p)
	}
	return e, nil
}

// vtid translates a thread id to the tree's namespace; 0 if the task has no such thread.
func (t *Task) vtid(tid int) int {
	for _, th := range t.Threads {
		if th.Tid == tid {
			return th.VTid
		}
	}
	return 0
}
