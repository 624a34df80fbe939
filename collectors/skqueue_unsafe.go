package collectors

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// header is a struct msghdr to receive with. The wrappers of package unix do not keep a name as it is: an abstract one
// may hold any byte.
type header struct {
	data, control, name []byte
	flags               int
}

// receive is recvmsg(2). It cuts control and name to what came, and returns the length of the message.
func (h *header) receive(fd, flags int) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(h.data)}
	iov.SetLen(len(h.data))
	msg := unix.Msghdr{Name: unsafe.SliceData(h.name), Namelen: uint32(len(h.name)), Iov: &iov}
	msg.SetIovlen(1)
	if len(h.control) > 0 {
		msg.Control = unsafe.SliceData(h.control)
		msg.SetControllen(len(h.control))
	}
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	h.control = h.control[:msg.Controllen]
	h.name = h.name[:min(int(msg.Namelen), len(h.name))]
	h.flags = int(msg.Flags)
	return int(n), nil
}
