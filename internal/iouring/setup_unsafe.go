package iouring

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of a ring (IORING_SETUP_*).
const (
	SQPoll       = 1 << 1  // a thread of the kernel's takes the requests
	CQSize       = 1 << 3  // the number of completions is given
	SubmitAll    = 1 << 7  // a bad request does not keep those after it from being taken; Linux 5.18
	SQE128       = 1 << 10 // requests have 128 bytes; Linux 5.19
	CQE32        = 1 << 11 // completions have 32 bytes; Linux 5.19
	DeferTaskrun = 1 << 13 // completions come when the one thread that may submit asks for them; Linux 6.1
	NoSQArray    = 1 << 16 // requests are taken in the order in which they lie; Linux 6.6
)

// Offsets at which a ring is mapped (IORING_OFF_*).
const (
	OffRings = 0
	OffCQ    = 0x8000000 // the same memory as OffRings
	OffSQEs  = 0x10000000
)

// Flags of io_uring_enter(2).
const (
	EnterGetEvents      = 1 << 0
	EnterSQWakeup       = 1 << 1
	EnterRegisteredRing = 1 << 4 // Linux 5.18
)

// What io_uring_register(2) is told.
const (
	RegisterBuffers      = 0
	RegisterEventfd      = 4
	RegisterRestrictions = 11
	RegisterPbufStatus   = 26 // Linux 6.8
	RegisterNAPI         = 27 // Linux 6.9
)

// Params is struct io_uring_params.
type Params struct {
	SQEntries, CQEntries, Flags, SQThreadCPU, SQThreadIdle, Features, WQFD uint32
	_                                                                      [3]uint32
	SQ                                                                     SQOffsets
	CQ                                                                     CQOffsets
}

// ParamsSize is the size of Params, in bytes; those of the offsets follow each other to its end.
const ParamsSize = 120

// SQOffsets is struct io_sqring_offsets: where things are in the mapped ring, in bytes.
type SQOffsets struct {
	Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, _ uint32
	_                                                           uint64
}

// CQOffsets is struct io_cqring_offsets.
type CQOffsets struct {
	Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags, _ uint32
	_                                                           uint64
}

// Setup makes a ring and fills p in. The descriptor is closed on exec.
func Setup(entries uint32, p *Params) (int, error) {
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if e != 0 {
		return -1, os.NewSyscallError("io_uring_setup", e)
	}
	return int(fd), nil
}

// Enter hands requests to the kernel, or waits for completions, and returns how many requests it took.
func Enter(fd int, submit, complete uint32, flags uint) (int, error) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), uintptr(complete), uintptr(flags), 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return int(n), os.NewSyscallError("io_uring_enter", e)
	}
}

// badAddress is no address of a program's: a call that gets as far as reading it answers EFAULT.
const badAddress = 1

// Ask calls io_uring_register with an argument that cannot be read, so that nothing is registered, and returns why not.
func Ask(fd int, opcode uint, args uint) error {
	address := uintptr(badAddress)
	if args == 0 {
		address = 0
	}
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), uintptr(opcode), address, uintptr(args), 0, 0)
	if e == 0 {
		return nil
	}
	return e
}

// pbufStatus is struct io_uring_buf_status.
type pbufStatus struct {
	group, head uint32
	_           [8]uint32
}

// HasBufferGroup says whether buffers are provided to the ring under a number (Linux 6.8).
func HasBufferGroup(fd int, group uint32) bool {
	s := pbufStatus{group: group}
	_, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), RegisterPbufStatus, uintptr(unsafe.Pointer(&s)), 1, 0, 0)
	return e != unix.ENOENT
}
