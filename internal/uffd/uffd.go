// Package uffd is userfaultfd(2) with types: who holds the descriptor of a task's address space gives its memory contents,
// serves its page faults, hears of its forks and remappings, or has the kernel note what is written.
//
// Linux 4.3; events of tasks that know nothing of it 4.11; without privilege 5.11; asynchronous write protection 6.7. The
// interface is linux/userfaultfd.h and Documentation/admin-guide/mm/userfaultfd.rst. It touches no image.
package uffd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UserModeOnly is the flag of userfaultfd(2) for a descriptor that serves no faults of the kernel itself; whoever may not
// trace other tasks gets no other (Linux 5.11).
const UserModeOnly = 1

// Features of UFFDIO_API.
const (
	EventFork   uint64 = 1 << 1 // Linux 4.11, as the next two
	EventRemap  uint64 = 1 << 2
	EventRemove uint64 = 1 << 3
	EventUnmap  uint64 = 1 << 6 // Linux 4.12
	// SigBus has whoever faults get SIGBUS, nobody waits (Linux 4.14).
	SigBus uint64 = 1 << 7
	// WPUnpopulated protects pages that are not there yet too (Linux 6.4).
	WPUnpopulated uint64 = 1 << 13
	// WPAsync has the kernel take the protection away by itself, so that it is a mark and no fault (Linux 6.7).
	WPAsync uint64 = 1 << 15

	// NonCooperative is what it takes to serve a task that knows nothing of it.
	NonCooperative = EventFork | EventRemap | EventRemove | EventUnmap
)

// Modes of registering a range.
const (
	Missing      uint64 = 1 << 0 // faults on pages that are not there
	WriteProtect uint64 = 1 << 1 // Linux 5.7
	Minor        uint64 = 1 << 2 // faults on pages of shared memory that are not mapped; Linux 5.13
)

const (
	ioctlAPI          = 0xc018aa3f
	ioctlRegister     = 0xc020aa00
	ioctlUnregister   = 0x8010aa01
	ioctlWake         = 0x8010aa02
	ioctlCopy         = 0xc028aa03
	ioctlZeropage     = 0xc020aa04
	ioctlWriteProtect = 0xc018aa06
	ioctlContinue     = 0xc020aa07

	apiVersion = 0xaa
	dontWake   = 1
)

// Operations that Register says are there for a range.
const (
	CanCopy     uint64 = 1 << 3
	CanZeropage uint64 = 1 << 4
	CanProtect  uint64 = 1 << 6
)

// FD is a userfaultfd held by this process, of whatever address space.
type FD int

// FromTask takes a second descriptor of the userfaultfd that task pid has as fd (pidfd_getfd, Linux 5.6).
func FromTask(pid, fd int) (FD, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open of task %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("userfaultfd of task %d: %w", pid, err)
	}
	return FD(own), nil
}

// Close ends it when nobody else has the descriptor: faults that wait are let go, and find zeros.
func (f FD) Close() error { return unix.Close(int(f)) }

// API shakes hands, once and before anything else, for features. EINVAL: the kernel has not all of them; EPERM: EventFork
// needs CAP_SYS_PTRACE.
func (f FD) API(features uint64) error {
	arg := [3]uint64{apiVersion, features}
	return f.ioctl("UFFDIO_API", ioctlAPI, unsafe.Pointer(&arg))
}

// Register begins to look after a range of mappings, and returns the operations there are for it. Neighbours may be
// registered by one call. EINVAL: a mapping in it cannot be; EBUSY: it is somebody else's.
func (f FD) Register(start, length, mode uint64) (can uint64, err error) {
	arg := [4]uint64{start, length, mode}
	err = f.ioctl("UFFDIO_REGISTER", ioctlRegister, unsafe.Pointer(&arg))
	return arg[3], err
}

// Unregister ends that; faults that wait find zeros.
func (f FD) Unregister(start, length uint64) error {
	arg := [2]uint64{start, length}
	return f.ioctl("UFFDIO_UNREGISTER", ioctlUnregister, unsafe.Pointer(&arg))
}

// Wake has who waits for a page of the range look again.
func (f FD) Wake(start, length uint64) error {
	arg := [2]uint64{start, length}
	return f.ioctl("UFFDIO_WAKE", ioctlWake, unsafe.Pointer(&arg))
}

// Copy makes pages at dst with the bytes of src and, unless quiet, wakes who waits for them. It returns how many bytes it
// did. EEXIST: the next page is there already; EAGAIN: events have to be read first, or only a part was done; ENOENT: there
// is no such mapping any more; ESRCH, ENOSPC (before 4.13): the task has ended.
func (f FD) Copy(dst uint64, src []byte, quiet bool) (int, error) {
	arg := struct {
		dst  uint64
		src  unsafe.Pointer
		len  uint64
		mode uint64
		done int64
	}{dst: dst, src: unsafe.Pointer(unsafe.SliceData(src)), len: uint64(len(src))}
	if quiet {
		arg.mode = dontWake
	}
	err := f.ioctl("UFFDIO_COPY", ioctlCopy, unsafe.Pointer(&arg))
	return int(max(arg.done, 0)), err
}

// Zeropage makes pages of zeros, which cost nothing until they are written. Errors are those of Copy.
func (f FD) Zeropage(start, length uint64) (int, error) {
	arg := struct {
		start, len, mode uint64
		done             int64
	}{start: start, len: length}
	err := f.ioctl("UFFDIO_ZEROPAGE", ioctlZeropage, unsafe.Pointer(&arg))
	return int(max(arg.done, 0)), err
}

// Continue maps pages of shared memory that are there, in a range registered with Minor.
func (f FD) Continue(start, length uint64) error {
	for length > 0 {
		arg := struct {
			start, len, mode uint64
			done             int64
		}{start: start, len: length, mode: dontWake}
		err := f.ioctl("UFFDIO_CONTINUE", ioctlContinue, unsafe.Pointer(&arg))
		if err != nil && (!errors.Is(err, unix.EAGAIN) || arg.done <= 0) {
			return err
		}
		start, length = start+uint64(arg.done), length-uint64(arg.done)
	}
	return nil
}

// Protect write-protects a range registered with WriteProtect, or takes that back.
func (f FD) Protect(start, length uint64, on bool) error {
	arg := [3]uint64{start, length}
	if on {
		arg[2] = 1
	}
	return f.ioctl("UFFDIO_WRITEPROTECT", ioctlWriteProtect, unsafe.Pointer(&arg))
}

// Kind says what an event is.
type Kind uint8

// The kinds of events.
const (
	Fault  Kind = 0x12
	Fork   Kind = 0x13
	Remap  Kind = 0x14
	Remove Kind = 0x15 // MADV_DONTNEED and the like
	Unmap  Kind = 0x16
)

// Event is what a userfaultfd has to tell. The task waits until it is read, and for the page of a Fault.
type Event struct {
	Kind  Kind
	Addr  uint64 // of a Fault; where else it begins
	End   uint64 // of Remove and Unmap
	To    uint64 // of Remap
	Len   uint64 // of Remap
	Child FD     // of Fork: the descriptor of the new address space
}

const msgSize = 32

// Read appends the events that wait to events, EAGAIN if there are none and the descriptor does not block. At most as many
// as fit into buf are read, which is scratch.
func (f FD) Read(buf []byte, events []Event) ([]Event, error) {
	n, err := unix.Read(int(f), buf[:len(buf)/msgSize*msgSize])
	if err != nil {
		return events, os.NewSyscallError("read of userfaultfd", err)
	}
	for b := buf[:n]; len(b) >= msgSize; b = b[msgSize:] {
		word := func(i int) uint64 { return binary.NativeEndian.Uint64(b[8+8*i:]) }
		e := Event{Kind: Kind(b[0]), Child: -1}
		switch e.Kind {
		case Fault:
			e.Addr = word(1)
		case Fork:
			e.Child = FD(int32(word(0)))
		case Remap:
			e.Addr, e.To, e.Len = word(0), word(1), word(2)
		case Remove, Unmap:
			e.Addr, e.End = word(0), word(1)
		default:
			return events, fmt.Errorf("userfaultfd tells of an event of kind %#x, which is not known", b[0])
		}
		events = append(events, e)
	}
	return events, nil
}

func (f FD) ioctl(name string, nr uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f), nr, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return os.NewSyscallError(name, errno)
		}
		return nil
	}
}

// Open makes a userfaultfd of this process's own address space and shakes hands.
func Open(flags int, features uint64) (FD, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(unix.O_CLOEXEC|unix.O_NONBLOCK|flags), 0, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("userfaultfd", errno)
	}
	f := FD(fd)
	if err := f.API(features); err != nil {
		return -1, errors.Join(err, f.Close())
	}
	return f, nil
}
