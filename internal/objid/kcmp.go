package objid

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Type is a kind of object kcmp can compare (linux/kcmp.h).
type Type int

const (
	File    Type = 0 // an open file description; the index is the descriptor
	VM      Type = 1 // address space
	FilesT  Type = 2 // descriptor table
	FS      Type = 3 // root, working directory, umask
	Sighand Type = 4 // signal actions
)

// Ref is one task's use of an object.
type Ref struct {
	Pid int
	// Index is the descriptor for File, 0 otherwise.
	Index int
	// Hint is what as a rule differs between objects with one key, but may change: of a file its position, plus 1. It is
	// trusted where there are many of them, see [Allocator.Guessed]; 0 never is.
	Hint uint64
}

// order compares two uses: 0 the same object, -1 or 1 the kernel's (arbitrary but stable) order.
func order(typ Type, a, b Ref) (int, error) {
	// RawSyscall: it does not sleep, and a large tree is compared some ten thousand times.
	r, _, errno := syscall.RawSyscall6(unix.SYS_KCMP, uintptr(a.Pid), uintptr(b.Pid), uintptr(typ), uintptr(a.Index), uintptr(b.Index), 0)
	if errno != 0 {
		return 0, fmt.Errorf("kcmp of tasks %d and %d: %w", a.Pid, b.Pid, errno)
	}
	switch r {
	case 0:
		return 0, nil
	case 1:
		return -1, nil
	case 2:
		return 1, nil
	}
	return 0, fmt.Errorf("kcmp of tasks %d and %d: the kernel gives no order", a.Pid, b.Pid)
}

// Same says whether two tasks use the same object.
func Same(typ Type, a, b Ref) (bool, error) {
	c, err := order(typ, a, b)
	return c == 0, err
}
