package features

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probeMapVdso: on this architecture the vdso is moved with mremap, which needs no request of its own.
func probeMapVdso() error { return errors.New("this architecture moves the vdso instead") }

func probeMapVdso32() error { return errMissing }

const ntArmHWBreak = 0x402

// probeBreakpoints reads how many breakpoints the processor has.
func probeBreakpoints() error {
	return withTracee(func(pid int) error {
		var state [8 + 16*16]byte // struct user_hwdebug_state: info, then registers
		iov := unix.Iovec{Base: &state[0], Len: uint64(len(state))}
		if _, err := ptrace(unix.PTRACE_GETREGSET, pid, ntArmHWBreak, uintptr(unsafe.Pointer(&iov))); err != nil {
			return err
		}
		if state[0] == 0 {
			return errors.New("the processor has no breakpoints")
		}
		return nil
	})
}
