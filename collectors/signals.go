package collectors

import (
	"encoding/binary"
	"slices"
	"syscall"

	"cryo/internal/ptrace"
	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	// numSignals is SIGRTMAX; there are actions for all but SIGKILL and SIGSTOP.
	numSignals = 64
	// sizeofSigaction is the kernel's struct sigaction: handler, flags, restorer, mask, eight bytes each.
	sizeofSigaction = 32
	// sizeofStack is that of stack_t.
	sizeofStack = 24
)

// fixed says whether a signal has no action.
func fixed(sig int) bool { return sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) }

// askSignals asks for the actions of all signals.
func askSignals(b *remote.Builder, _ *Task) Answer[*Task] {
	actions := b.Zero(numSignals * sizeofSigaction)
	for sig := 1; sig <= numSignals; sig++ {
		if !fixed(sig) {
			b.Call(unix.SYS_RT_SIGACTION, remote.Imm(sig), remote.Imm(0), actions.At((sig-1)*sizeofSigaction), remote.Imm(8)).Must().Discard()
		}
	}
	return func(r *remote.Results, t *Task) error {
		t.Core.Tc.Sigactions = sigactions(r.Bytes(actions))
		return nil
	}
}

// sigactions makes the entries of all actions, in three pieces of memory: a tree of tasks has many.
func sigactions(b []byte) []*criu_sa.SaEntry {
	const n = numSignals - 2
	list, entries, words := make([]*criu_sa.SaEntry, 0, n), make([]criu_sa.SaEntry, n), make([]uint64, 4*n)
	compat := proto.Bool(false)
	for sig := 1; sig <= numSignals; sig++ {
		if fixed(sig) {
			continue
		}
		e, w := &entries[len(list)], words[4*len(list):]
		for i := range 4 {
			w[i] = binary.NativeEndian.Uint64(b[(sig-1)*sizeofSigaction+8*i:])
		}
		e.Sigaction, e.Flags, e.Restorer, e.Mask, e.CompatSigaction = &w[0], &w[1], &w[2], &w[3], compat
		list = append(list, e)
	}
	return list
}

// askAltStack asks a thread for the stack of its signal handlers.
func askAltStack(b *remote.Builder) Answer[*Thread] {
	stack := b.Zero(sizeofStack)
	b.Call(unix.SYS_SIGALTSTACK, remote.Imm(0), stack).Must()
	return func(r *remote.Results, th *Thread) error {
		s := r.Bytes(stack)
		th.Core.ThreadCore.Sas = &criu_core.ThreadSasEntry{
			SsSp:    proto.Uint64(binary.NativeEndian.Uint64(s)),
			SsFlags: proto.Uint32(binary.NativeEndian.Uint32(s[8:])),
			SsSize:  proto.Uint64(binary.NativeEndian.Uint64(s[16:])),
		}
		return nil
	}
}

// traceSignals reads the queues of pending signals, the threads' own and the task's, with all that is known of each.
//
// A pending SIGTRAP is refused, as by criu: it is the signal by which tracers are told of everything, and a restore by
// criu loses it.
func traceSignals(_ *Tracees, t *Task) (err error) {
	const trap = 1 << (unix.SIGTRAP - 1)
	for _, th := range t.Threads {
		if (th.Status.SigPnd|th.Status.ShdPnd)&trap != 0 {
			return Obstacle{Pid: th.Tid, What: "a SIGTRAP is pending, which cannot be kept", Remedy: "let it be delivered first"}
		}
		if th.Core.ThreadCore.SignalsP, err = pendingSignals(th.Tid, false, th.Status.SigPnd); err != nil {
			return err
		}
	}
	if t.Core.Tc.SignalsS, err = pendingSignals(t.Pid, true, t.Status.ShdPnd); err != nil || t.State != Stopped {
		return err
	}
	// SIGCONT will flush them, so nobody will ever see them; put back, they would stop the task twice.
	dropStops(t.Core.Tc.SignalsS)
	for _, th := range t.Threads {
		dropStops(th.Core.ThreadCore.SignalsP)
	}
	return nil
}

// pendingSignals reads a queue of signals without taking them from it. set is which signals are pending at all.
func pendingSignals(tid int, shared bool, set uint64) (*siginfo.SignalQueueEntry, error) {
	queue := &siginfo.SignalQueueEntry{}
	if set == 0 {
		return queue, nil
	}
	var batch [32]ptrace.RawSigInfo
	for off := uint64(0); ; {
		n, err := ptrace.PeekSigInfo(tid, off, shared, batch[:])
		if err != nil || n == 0 {
			return queue, err
		}
		for i := range batch[:n] {
			queue.Signals = append(queue.Signals, &siginfo.SiginfoEntry{Siginfo: slices.Clone(batch[i][:])})
		}
		off += uint64(n)
	}
}

// dropStops takes the signals that stop a task out of a queue.
func dropStops(queue *siginfo.SignalQueueEntry) {
	queue.Signals = slices.DeleteFunc(queue.Signals, func(e *siginfo.SiginfoEntry) bool {
		switch syscall.Signal(binary.NativeEndian.Uint32(e.Siginfo)) {
		case syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU:
			return true
		}
		return false
	})
}
