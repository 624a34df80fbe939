package features

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const fGetOwnerUIDs = 17

// fcntlOwnerUIDs asks who set the owner of a descriptor.
func fcntlOwnerUIDs(fd uintptr) error {
	var uids [2]uint32
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, fd, fGetOwnerUIDs, uintptr(unsafe.Pointer(&uids)))
	if errno != 0 {
		return os.NewSyscallError("fcntl(F_GETOWNER_UIDS)", errno)
	}
	return nil
}

// mapsPrefix is how the line of a mapping begins in /proc/PID/maps.
func mapsPrefix(mapping []byte) string {
	return fmt.Sprintf("%08x-", uintptr(unsafe.Pointer(&mapping[0])))
}
