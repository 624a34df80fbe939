package collectors

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Sizes of the kernel's structures.
const (
	sizeofStack     = 24 // stack_t
	sizeofSchedAttr = 48 // struct sched_attr, version 0
	sizeofComm      = 16
)

// threadProgram is what every thread is asked about itself. It is the same for all, so it is built once.
type threadProgram struct {
	prog *remote.Program

	tidAddr, altstack, pdeath, comm, sched, robust, robustLen remote.Ref
	securebits, timerslack                                    remote.Op
}

// newThreadProgram builds it: one stop a thread, whatever it has to tell.
func newThreadProgram() *threadProgram {
	b := remote.NewBuilder("state of a thread")
	t := &threadProgram{
		tidAddr: b.Zero(8), altstack: b.Zero(sizeofStack), pdeath: b.Zero(8), comm: b.Zero(sizeofComm),
		sched: b.Zero(sizeofSchedAttr), robust: b.Zero(8), robustLen: b.Zero(8),
	}
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_TID_ADDRESS), t.tidAddr).Allow(unix.EINVAL) // CONFIG_CHECKPOINT_RESTORE
	b.Call(unix.SYS_SIGALTSTACK, remote.Imm(0), t.altstack).Must()
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_PDEATHSIG), t.pdeath).Must()
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_NAME), t.comm).Must()
	b.Call(unix.SYS_SCHED_GETATTR, remote.Imm(0), t.sched, remote.Imm(sizeofSchedAttr), remote.Imm(0)).Must()
	b.Call(unix.SYS_GET_ROBUST_LIST, remote.Imm(0), t.robust, t.robustLen).Allow(unix.ENOSYS) // CONFIG_FUTEX
	t.securebits = b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_SECUREBITS)).Must()
	t.timerslack = b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_TIMERSLACK)).Must()
	t.prog = b.Program()
	return t
}

// read puts a thread's answers into its core image.
func (t *threadProgram) read(r *remote.Results, th *Thread) error {
	tc := th.Core.ThreadCore
	stack := r.Bytes(t.altstack)
	tc.Sas = &criu_core.ThreadSasEntry{
		SsSp:    proto.Uint64(binary.NativeEndian.Uint64(stack)),
		SsFlags: proto.Uint32(binary.NativeEndian.Uint32(stack[8:])),
		SsSize:  proto.Uint64(binary.NativeEndian.Uint64(stack[16:])),
	}
	if sig := r.Uint32(t.pdeath); sig != 0 {
		tc.PdeathSig = proto.Uint32(sig)
	}
	comm, _, _ := bytes.Cut(r.Bytes(t.comm), []byte{0})
	tc.Comm = proto.String(string(comm))
	tc.FutexRla = proto.Uint64(r.Uint64(t.robust))
	tc.FutexRlaLen = proto.Uint32(r.Uint32(t.robustLen))
	if err := readSched(r.Bytes(t.sched), tc); err != nil {
		return err
	}
	bits, err := r.Value(t.securebits)
	if err != nil {
		return err
	}
	th.Core.ThreadCore.Creds.Secbits = proto.Uint32(uint32(bits))
	if th.TimerSlack, err = r.Value(t.timerslack); err != nil {
		return err
	}
	return th.Tracee.ToCore(th.Core, r.Uint64(t.tidAddr))
}

// readSched takes a struct sched_attr apart.
func readSched(attr []byte, tc *criu_core.ThreadCoreEntry) error {
	const schedDeadline, flagResetOnFork, policyResetOnFork = 6, 1, 0x40000000
	policy := binary.NativeEndian.Uint32(attr[4:])
	flags := binary.NativeEndian.Uint64(attr[8:])
	tc.SchedNice = proto.Int32(int32(binary.NativeEndian.Uint32(attr[16:])))
	switch policy {
	case unix.SCHED_FIFO, unix.SCHED_RR:
		tc.SchedPrio = proto.Uint32(binary.NativeEndian.Uint32(attr[20:]))
	case schedDeadline:
		return fmt.Errorf("the thread runs under SCHED_DEADLINE, which the image format cannot hold")
	}
	if flags&flagResetOnFork != 0 {
		policy |= policyResetOnFork
	}
	tc.SchedPolicy = proto.Uint32(policy)
	return nil
}
