package ptrace

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
)

// Register sets, the types of ELF core notes.
const (
	RegSetGeneral = 1     // NT_PRSTATUS
	RegSetFP      = 2     // NT_PRFPREG
	RegSetXState  = 0x202 // NT_X86_XSTATE
	RegSetShstk   = 0x204 // NT_X86_SHSTK, kernel 6.6
	RegSetTLS     = 0x401 // NT_ARM_TLS
	RegSetPACA    = 0x407 // NT_ARM_PACA_KEYS
	RegSetPACG    = 0x408 // NT_ARM_PACG_KEYS
	RegSetPACOn   = 0x40a // NT_ARM_PAC_ENABLED_KEYS
)

// GetRegSet reads a register set of a stopped tracee into buf and returns how many bytes it has.
func GetRegSet(tid, set int, buf []byte) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(buf)}
	iov.SetLen(len(buf))
	_, err := requestPtr("PTRACE_GETREGSET", unix.PTRACE_GETREGSET, tid, uintptr(set), unsafe.Pointer(&iov))
	runtime.KeepAlive(buf)
	return int(iov.Len), err
}

// SetRegSet writes a register set of a stopped tracee.
func SetRegSet(tid, set int, buf []byte) error {
	iov := unix.Iovec{Base: unsafe.SliceData(buf)}
	iov.SetLen(len(buf))
	_, err := requestPtr("PTRACE_SETREGSET", unix.PTRACE_SETREGSET, tid, uintptr(set), unsafe.Pointer(&iov))
	runtime.KeepAlive(buf)
	return err
}

// GetRegs reads the general registers of a stopped tracee.
func GetRegs(tid int, r *arch.Regs) error {
	n, err := GetRegSet(tid, RegSetGeneral, r.Bytes())
	if err == nil && n != len(r.Bytes()) {
		return fmt.Errorf("thread %d runs 32-bit code: its registers have %d bytes, not %d", tid, n, len(r.Bytes()))
	}
	return err
}

// SetRegs writes the general registers of a stopped tracee.
func SetRegs(tid int, r *arch.Regs) error { return SetRegSet(tid, RegSetGeneral, r.Bytes()) }

// xstates are buffers for the extended state of a thread.
var xstates = sync.Pool{New: func() any {
	b := make([]byte, arch.XStateMax())
	return &b
}}

// GetXState reads the extended processor state of a stopped tracee, as arch.TrimXState leaves it.
func GetXState(tid int) ([]byte, error) {
	buf := xstates.Get().(*[]byte)
	defer xstates.Put(buf)
	n, err := GetRegSet(tid, arch.XStateRegSet, *buf)
	return arch.TrimXState((*buf)[:n]), err
}

// SetXState writes the extended processor state of a stopped tracee.
func SetXState(tid int, state []byte) error {
	buf := xstates.Get().(*[]byte)
	defer xstates.Put(buf)
	return SetRegSet(tid, arch.XStateRegSet, arch.PadXState(*buf, state))
}

// GetState reads everything a stopped tracee has in the processor.
func GetState(tid int, s *arch.State) error {
	if err := GetRegs(tid, &s.Regs); err != nil {
		return err
	}
	var err error
	if s.XState, err = GetXState(tid); err != nil {
		return err
	}
	return getExtra(tid, &s.Extra)
}

// SetState writes what GetState reads. Registers come last: whatever fails before leaves the thread where it was.
func SetState(tid int, s *arch.State) error {
	if s.XState != nil {
		if err := SetXState(tid, s.XState); err != nil {
			return err
		}
	}
	if err := setExtra(tid, &s.Extra); err != nil {
		return err
	}
	return SetRegs(tid, &s.Regs)
}
