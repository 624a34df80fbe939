package remote

import (
	"errors"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// Thread is a stopped tracee and the state it gets back when the tool is done with it.
type Thread struct {
	TID        int
	arch.State // registers, extended state
	SigMask    uint64
	Rseq       ptrace.RseqConfiguration // zero: none registered, or a kernel before 5.13
	Seccomp    int                      // mode of the thread; Inject finds out the leader's, of others the caller says it
	RseqCS     uint64                   // address of the critical section the thread was in or had been in last, 0: none
	Dispatch   ptrace.SyscallDispatch   // syscall user dispatch, which is off while programs run; zero before kernel 6.4
	Options    int                      // ptrace options the caller has given it; those programs need are added
}

// Capture reads the state of a stopped tracee. A thread that stopped inside a restartable sequence is sent to the
// sequence's abort handler, as the kernel does after any preemption: once foreign code runs on the thread, the kernel
// forgets that it was inside.
func Capture(tid int) (*Thread, error) {
	t := &Thread{TID: tid}
	err := ptrace.GetState(tid, &t.State)
	if err != nil {
		return nil, err
	}
	if t.SigMask, err = ptrace.SigMask(tid); err != nil {
		return nil, err
	}
	if t.Rseq, err = ptrace.Rseq(tid); unknownRequest(err) != nil {
		return nil, err
	}
	if t.Dispatch, err = ptrace.GetSyscallDispatch(tid); unknownRequest(err) != nil {
		return nil, err
	}
	if t.Rseq.Pointer != 0 {
		if err := t.leaveCriticalSection(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// unknownRequest drops the errors of a kernel that does not know a ptrace request.
func unknownRequest(err error) error {
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// Offsets in struct rseq and struct rseq_cs.
const (
	rseqCSField    = 8
	csStart        = 8
	csPostCommit   = 16
	csAbort        = 24
	rseqCSBytes    = 32
	csFlags        = 4
	csNoRestartAll = 7 // flags of kernels before 6.1: no restart on preemption, signal, migration
)

func (t *Thread) leaveCriticalSection() error {
	var word [8]byte
	if err := ptrace.ReadMemory(t.TID, t.Rseq.Pointer+rseqCSField, word[:]); err != nil {
		return nil // registered, and unmapped since: the kernel would kill the thread, we leave that to it
	}
	if t.RseqCS = le.Uint64(word[:]); t.RseqCS == 0 {
		return nil
	}
	var cs [rseqCSBytes]byte
	if err := ptrace.ReadMemory(t.TID, t.RseqCS, cs[:]); err != nil {
		return nil
	}
	if le.Uint32(cs[csFlags:])&csNoRestartAll != 0 {
		return nil
	}
	if pc := t.Regs.PC(); pc-le.Uint64(cs[csStart:]) < le.Uint64(cs[csPostCommit:]) {
		t.Regs.SetPC(le.Uint64(cs[csAbort:]))
	}
	return nil
}
