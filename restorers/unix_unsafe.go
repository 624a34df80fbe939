package restorers

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The wrappers of package unix change the names of unix sockets: they take @ for NUL and add one behind a path. Here a
// name is what stands in the image.

// sockaddrUn is a struct sockaddr_un with a name: a path, or an abstract name that begins with NUL.
func sockaddrUn(name []byte) []byte {
	return append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), name...)
}

func bindRaw(fd int, addr []byte) error { return withAddress(unix.SYS_BIND, fd, addr) }

func connectRaw(fd int, addr []byte) error { return withAddress(unix.SYS_CONNECT, fd, addr) }

func withAddress(nr uintptr, fd int, addr []byte) error {
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(addr))), uintptr(len(addr)))
	if errno != 0 {
		return errno
	}
	return nil
}

// sendmsg sends to addr, which is nil for a connected socket.
func sendmsg(fd int, data, control, addr []byte, flags int) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(len(data))
	msg := unix.Msghdr{Iov: &iov}
	msg.SetIovlen(1)
	if len(control) > 0 {
		msg.Control = unsafe.SliceData(control)
		msg.SetControllen(len(control))
	}
	if len(addr) > 0 {
		msg.Name, msg.Namelen = unsafe.SliceData(addr), uint32(len(addr))
	}
	n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
