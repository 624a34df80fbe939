package features

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Subfunctions of arch_prctl.
const (
	archMapVdso32 = 0x2002
	archMapVdso64 = 0x2003
)

// mapVdso asks for a second vdso, which a process is refused that has one.
func mapVdso(which uintptr) error {
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, which, 0, 0)
	return refusedWith("arch_prctl(ARCH_MAP_VDSO)", errno, unix.EEXIST)
}

func probeMapVdso() error   { return mapVdso(archMapVdso64) }
func probeMapVdso32() error { return mapVdso(archMapVdso32) }

const (
	debugRegs = 848 // offset of u_debugreg in struct user
	wordSize  = 8
)

// probeBreakpoints lets a child run up to its first instruction: with the breakpoint it gets no further.
func probeBreakpoints() error {
	return withTracee(func(pid int) error {
		var regs unix.PtraceRegs
		if _, err := ptrace(unix.PTRACE_GETREGS, pid, 0, uintptr(unsafe.Pointer(&regs))); err != nil {
			return err
		}
		if _, err := ptrace(unix.PTRACE_POKEUSR, pid, debugRegs, uintptr(regs.Rip)); err != nil {
			return fmt.Errorf("set the address: %w", err)
		}
		if _, err := ptrace(unix.PTRACE_POKEUSR, pid, debugRegs+7*wordSize, 1); err != nil {
			return fmt.Errorf("enable: %w", err)
		}
		if _, err := ptrace(unix.PTRACE_CONT, pid, 0, 0); err != nil {
			return err
		}
		var ws unix.WaitStatus
		if _, err := wait(pid, &ws); err != nil {
			return os.NewSyscallError("wait4", err)
		}
		if !ws.Stopped() || ws.StopSignal() != unix.SIGTRAP {
			return errors.New("the processor did not stop at the address")
		}
		return nil
	})
}
