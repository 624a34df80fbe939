// Package ptrace is the kernel's ptrace(2) interface, one typed function a request, and Tracer, the thread that is
// allowed to make them.
//
// Linux ties a tracee to the one thread that attached it: a request from any other thread fails with ESRCH. So all
// functions of this package that take a thread id are called inside Tracer.Do of the tracer which seized that thread.
// A Tracer owns any number of tracees; several tracers may split a large tree of tasks between them. A child forked
// under trace belongs to the tracer of its parent.
//
// Tracees are always attached by PTRACE_SEIZE, never by PTRACE_ATTACH, so group-stops keep their meaning.
//
// Kernel: 4.5 for everything that is not marked otherwise at its function.
package ptrace

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is a failed ptrace request.
type Error struct {
	Request string // "PTRACE_SEIZE"
	TID     int
	Errno   syscall.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("%s of thread %d: %v", e.Request, e.TID, e.Errno) }

// Unwrap gives the error number, so that errors.Is(err, unix.ESRCH) works.
func (e *Error) Unwrap() error { return e.Errno }

func request(name string, req, tid int, addr, data uintptr) (int, error) {
	// RawSyscall: no request sleeps, and the scheduler must not move the thread's work about for each of them.
	n, _, errno := syscall.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return 0, &Error{name, tid, errno}
	}
	return int(n), nil
}

func requestPtr(name string, req, tid int, addr uintptr, data unsafe.Pointer) (int, error) {
	n, err := request(name, req, tid, addr, uintptr(data))
	runtime.KeepAlive(data)
	return n, err
}

// Options of a tracee, for Seize and SetOptions.
const (
	OptSysGood        = unix.PTRACE_O_TRACESYSGOOD
	OptFork           = unix.PTRACE_O_TRACEFORK
	OptVfork          = unix.PTRACE_O_TRACEVFORK
	OptClone          = unix.PTRACE_O_TRACECLONE
	OptExec           = unix.PTRACE_O_TRACEEXEC
	OptExit           = unix.PTRACE_O_TRACEEXIT
	OptExitKill       = unix.PTRACE_O_EXITKILL
	OptSuspendSeccomp = unix.PTRACE_O_SUSPEND_SECCOMP // 4.3, CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN in the initial user namespace
)

// Seize makes tid a tracee of the calling thread without stopping it.
func Seize(tid, options int) error {
	_, err := request("PTRACE_SEIZE", unix.PTRACE_SEIZE, tid, 0, uintptr(options))
	return err
}

// Interrupt asks a seized thread to stop; the stop is reported by a wait.
func Interrupt(tid int) error {
	_, err := request("PTRACE_INTERRUPT", unix.PTRACE_INTERRUPT, tid, 0, 0)
	return err
}

// Listen leaves a thread in its group-stop while it goes on reporting events.
func Listen(tid int) error {
	_, err := request("PTRACE_LISTEN", unix.PTRACE_LISTEN, tid, 0, 0)
	return err
}

// SetOptions replaces all options of a stopped tracee.
func SetOptions(tid, options int) error {
	_, err := request("PTRACE_SETOPTIONS", unix.PTRACE_SETOPTIONS, tid, 0, uintptr(options))
	return err
}

// Cont lets a stopped tracee run and gives it a signal, 0 for none.
func Cont(tid int, sig syscall.Signal) error {
	_, err := request("PTRACE_CONT", unix.PTRACE_CONT, tid, 0, uintptr(sig))
	return err
}

// Syscall lets a stopped tracee run to its next entry to or exit from a system call.
func Syscall(tid int, sig syscall.Signal) error {
	_, err := request("PTRACE_SYSCALL", unix.PTRACE_SYSCALL, tid, 0, uintptr(sig))
	return err
}

// SingleStep lets a stopped tracee execute one instruction.
func SingleStep(tid int, sig syscall.Signal) error {
	_, err := request("PTRACE_SINGLESTEP", unix.PTRACE_SINGLESTEP, tid, 0, uintptr(sig))
	return err
}

// Detach lets a stopped tracee go with a signal, 0 for none. With SIGSTOP it ends up stopped; a group-stop that is in
// effect comes back by itself.
func Detach(tid int, sig syscall.Signal) error {
	_, err := request("PTRACE_DETACH", unix.PTRACE_DETACH, tid, 0, uintptr(sig))
	return err
}

// EventMessage is the number that goes with an event stop: the new thread's id at a clone, fork or vfork.
func EventMessage(tid int) (uint64, error) {
	var msg uint64
	_, err := requestPtr("PTRACE_GETEVENTMSG", unix.PTRACE_GETEVENTMSG, tid, 0, unsafe.Pointer(&msg))
	return msg, err
}

// SigInfo is the siginfo of the signal a tracee is stopped at. EINVAL in a group-stop.
func SigInfo(tid int) (unix.Siginfo, error) {
	var si unix.Siginfo
	_, err := requestPtr("PTRACE_GETSIGINFO", unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&si))
	return si, err
}

// SigMask is the set of signals a thread blocks, bit n-1 for signal n. Kernel 3.11.
func SigMask(tid int) (uint64, error) {
	var mask uint64
	_, err := requestPtr("PTRACE_GETSIGMASK", requestGetSigMask, tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
	return mask, err
}

// SetSigMask sets the set of signals a thread blocks.
func SetSigMask(tid int, mask uint64) error {
	_, err := requestPtr("PTRACE_SETSIGMASK", requestSetSigMask, tid, unsafe.Sizeof(mask), unsafe.Pointer(&mask))
	return err
}

// Requests and sizes x/sys does not name.
const (
	requestGetSigMask = 0x420a
	requestSetSigMask = 0x420b

	requestSetDispatch = 0x4210
	requestGetDispatch = 0x4211

	siginfoSize = 128
)

// RawSigInfo is a siginfo_t as the kernel stores it.
type RawSigInfo [siginfoSize]byte

// PeekSigInfo reads pending signals from number off on, into buf, without taking them from the queue: the thread's own,
// or the thread group's with shared. It returns how many there were. Kernel 3.10.
func PeekSigInfo(tid int, off uint64, shared bool, buf []RawSigInfo) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	args := struct {
		off   uint64
		flags uint32
		nr    int32
	}{off: off, nr: int32(len(buf))}
	if shared {
		args.flags = unix.PTRACE_PEEKSIGINFO_SHARED
	}
	n, err := requestPtr("PTRACE_PEEKSIGINFO", unix.PTRACE_PEEKSIGINFO, tid, uintptr(unsafe.Pointer(&args)), unsafe.Pointer(&buf[0]))
	runtime.KeepAlive(&args)
	return n, err
}

// RseqConfiguration is where a thread has registered its restartable sequences, and how.
type RseqConfiguration struct {
	Pointer   uint64 // address of struct rseq, 0 when none is registered
	Size      uint32
	Signature uint32
	Flags     uint32
	_         uint32
}

// Rseq reads a thread's registration of restartable sequences. Kernel 5.13; EIO before.
func Rseq(tid int) (RseqConfiguration, error) {
	var c RseqConfiguration
	_, err := requestPtr("PTRACE_GET_RSEQ_CONFIGURATION", unix.PTRACE_GET_RSEQ_CONFIGURATION, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

// SeccompFilter reads classic BPF filter number i of a thread, the youngest is number 0. ENOENT past the last. Kernel
// 4.4, CONFIG_CHECKPOINT_RESTORE, CAP_SYS_ADMIN in the initial user namespace.
func SeccompFilter(tid, i int) ([]unix.SockFilter, error) {
	n, err := request("PTRACE_SECCOMP_GET_FILTER", unix.PTRACE_SECCOMP_GET_FILTER, tid, uintptr(i), 0)
	if err != nil || n == 0 {
		return nil, err
	}
	prog := make([]unix.SockFilter, n)
	_, err = requestPtr("PTRACE_SECCOMP_GET_FILTER", unix.PTRACE_SECCOMP_GET_FILTER, tid, uintptr(i), unsafe.Pointer(&prog[0]))
	return prog, err
}

// SeccompFlags reads the flags filter number i was installed with. Kernel 4.14.
func SeccompFlags(tid, i int) (uint64, error) {
	meta := struct{ off, flags uint64 }{off: uint64(i)}
	_, err := requestPtr("PTRACE_SECCOMP_GET_METADATA", unix.PTRACE_SECCOMP_GET_METADATA, tid, unsafe.Sizeof(meta), unsafe.Pointer(&meta))
	return meta.flags, err
}

// SyscallDispatch is a thread's syscall user dispatch (PR_SET_SYSCALL_USER_DISPATCH): system calls made outside of
// [Offset, Offset+Len) raise SIGSYS while the byte at Selector says so.
type SyscallDispatch struct {
	Mode     uint64 // 0: off
	Selector uint64
	Offset   uint64
	Len      uint64
}

// On says whether the thread has it.
func (d SyscallDispatch) On() bool { return d.Mode != 0 }

// GetSyscallDispatch reads a thread's syscall user dispatch. Kernel 6.4; EIO before.
func GetSyscallDispatch(tid int) (SyscallDispatch, error) {
	var d SyscallDispatch
	_, err := requestPtr("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", requestGetDispatch, tid, unsafe.Sizeof(d), unsafe.Pointer(&d))
	return d, err
}

// SetSyscallDispatch sets a thread's syscall user dispatch.
func SetSyscallDispatch(tid int, d SyscallDispatch) error {
	_, err := requestPtr("PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG", requestSetDispatch, tid, unsafe.Sizeof(d), unsafe.Pointer(&d))
	return err
}

// Operations of SyscallInfo.
const (
	SyscallNone    = 0
	SyscallEntry   = 1
	SyscallExit    = 2
	SyscallSeccomp = 3
)

// SyscallInfo is the head of struct ptrace_syscall_info.
type SyscallInfo struct {
	Op                 uint8
	_                  [3]uint8
	Arch               uint32
	InstructionPointer uint64
	StackPointer       uint64
	Entry              struct { // or, at exit, [0] the result and [1] whether it is an error
		Nr   uint64
		Args [6]uint64
	}
	_ [8]byte
}

// GetSyscallInfo tells which kind of system call stop a tracee is in, and of which call. Kernel 5.3.
func GetSyscallInfo(tid int) (SyscallInfo, error) {
	var si SyscallInfo
	_, err := requestPtr("PTRACE_GET_SYSCALL_INFO", unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(si), unsafe.Pointer(&si))
	return si, err
}
