package ptrace

import (
	"encoding/binary"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cryo/arch"
)

// noShadowStacks says that the kernel, or the processor, knows none.
var noShadowStacks atomic.Bool

// getExtra tells whether the thread has a shadow stack. ENODEV: it has none; EINVAL: the kernel knows none (before 6.6).
func getExtra(tid int, e *arch.Extra) error {
	if noShadowStacks.Load() {
		return nil
	}
	var ssp [8]byte
	_, err := GetRegSet(tid, RegSetShstk, ssp[:])
	switch {
	case errors.Is(err, unix.EINVAL):
		noShadowStacks.Store(true)
		return nil
	case errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	}
	e.ShadowStack, e.SSP = true, binary.LittleEndian.Uint64(ssp[:])
	return nil
}

// setExtra sets the shadow stack pointer of a thread that has a shadow stack.
func setExtra(tid int, e *arch.Extra) error {
	if !e.ShadowStack {
		return nil
	}
	return SetRegSet(tid, RegSetShstk, binary.LittleEndian.AppendUint64(nil, e.SSP))
}

// RestoreVolatile writes what of a thread's state the system calls of foreign code have destroyed besides general
// registers: nothing on this architecture.
func RestoreVolatile(int, *arch.Extra) error { return nil }
