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
	tooShort            bool // there is no memory behind data, but it is said to be one byte longer
}

// receive is recvmsg(2). It cuts control and name to what came, and returns the length of the message.
func (h *header) receive(fd, flags int) (int, error) {
	var iov [2]unix.Iovec // a base of nil is never mapped
	iov[0].Base = unsafe.SliceData(h.data)
	iov[0].SetLen(len(h.data))
	iov[1].SetLen(1)
	msg := unix.Msghdr{Name: unsafe.SliceData(h.name), Namelen: uint32(len(h.name)), Iov: &iov[0]}
	msg.SetIovlen(1)
	if h.tooShort {
		msg.SetIovlen(2)
	}
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
