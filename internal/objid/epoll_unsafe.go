package objid

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// EpollSlot names one file that an epoll instance watches: struct kcmp_epoll_slot.
type EpollSlot struct {
	// Epoll is the instance's descriptor, Target the number the file was added by.
	Epoll, Target uint32
	// Nth counts the files that were added by the same number, from 0.
	Nth uint32
}

// SameEpollTarget says whether a descriptor of task pid is the file that an epoll instance of task holder watches
// (KCMP_EPOLL_TFD, Linux 4.13). The two are the same task, unless the instance was handed on.
func SameEpollTarget(pid, fd, holder int, slot EpollSlot) (bool, error) {
	const kcmpEpollTarget = 7
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(holder), kcmpEpollTarget, uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	if errno != 0 {
		return false, errno
	}
	return r == 0, nil
}
