package collectors

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// getOwnEx is fcntl(F_GETOWN_EX): F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2, and the id; 0 for nobody.
func getOwnEx(fd int) (typ, pid int32, err error) {
	var owner struct{ typ, pid int32 }
	if err := fcntlPointer(fd, unix.F_GETOWN_EX, unsafe.Pointer(&owner)); err != nil {
		return 0, 0, err
	}
	return owner.typ, owner.pid, nil
}

// getOwnerUIDs is fcntl(F_GETOWNER_UIDS): the real and effective uid of who set the owner (Linux 3.5,
// CONFIG_CHECKPOINT_RESTORE).
func getOwnerUIDs(fd int) (uids [2]uint32, err error) {
	const getOwnerUIDs = 17
	err = fcntlPointer(fd, getOwnerUIDs, unsafe.Pointer(&uids))
	return uids, err
}

func fcntlPointer(fd, cmd int, p unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(p))
	if errno != 0 {
		return errno
	}
	return nil
}
