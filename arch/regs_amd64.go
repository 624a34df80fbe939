package arch

import (
	"encoding/binary"
	"unsafe"
)

// Regs is the kernel's struct user_regs_struct, register set NT_PRSTATUS.
type Regs struct {
	R15, R14, R13, R12, BP, BX, R11, R10, R9, R8 uint64
	AX, CX, DX, SI, DI, OrigAX                   uint64
	IP, CS, Flags, SP, SS                        uint64
	FSBase, GSBase                               uint64
	DS, ES, FS, GS                               uint64
}

const (
	cs32     = 0x23
	flagTrap = 1 << 8  // TF
	flagDir  = 1 << 10 // DF
)

// Bytes is the memory of r, as PTRACE_GETREGSET and PTRACE_SETREGSET want it.
func (r *Regs) Bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r)) }

// PC is the program counter.
func (r *Regs) PC() uint64 { return r.IP }

// SetPC sets the program counter.
func (r *Regs) SetPC(pc uint64) { r.IP = pc }

// StackPointer is the stack pointer.
func (r *Regs) StackPointer() uint64 { return r.SP }

// SyscallNr is the number of the system call the thread is in, -1 when it is in none.
func (r *Regs) SyscallNr() int64 { return int64(r.OrigAX) }

// SyscallResult is the value the system call returned (or is about to return).
func (r *Regs) SyscallResult() int64 { return int64(r.AX) }

// SyscallArg is argument i (0 to 5) of the system call the thread is in.
func (r *Regs) SyscallArg(i int) uint64 {
	return [...]uint64{r.DI, r.SI, r.DX, r.R10, r.R8, r.R9}[i]
}

// Compat says whether the thread runs 32-bit code.
func (r *Regs) Compat() bool { return r.CS == cs32 }

// ThreadPointer is the base address of thread-local storage.
func (r *Regs) ThreadPointer() uint64 { return r.FSBase }

// SetupCall returns registers for which the thread, at a system call instruction at address at, makes system call
// nr. Nothing else of the thread's registers matters to the call; r itself is left alone.
func (r *Regs) SetupCall(at uint64, nr uint64, args ...uint64) Regs {
	c := *r
	c.leaveSyscall()
	c.IP = at
	c.AX = nr
	var a [OpArgs]uint64
	copy(a[:], args)
	c.DI, c.SI, c.DX, c.R10, c.R8, c.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
	return c
}

// SetupBlob returns registers for which the thread runs the interpreter at address code, on the program buffer at
// base, from the operation at address op.
func (r *Regs) SetupBlob(code, base, op uint64) Regs {
	c := *r
	c.leaveSyscall()
	c.IP = code
	c.R12, c.R13 = base, op
	return c
}

// leaveSyscall keeps the kernel from restarting a system call when it resumes the thread elsewhere.
func (r *Regs) leaveSyscall() {
	r.OrigAX = ^uint64(0)
	r.Flags &^= flagTrap | flagDir
}

// The kernel's internal results of interrupted system calls, which a tracer gets to see.
const (
	errRestartSys     = -512 // restart unless a handler without SA_RESTART runs
	errRestartNoIntr  = -513 // restart always
	errRestartNoHand  = -514 // restart unless a handler runs
	errRestartByBlock = -516 // go on with restart_syscall, the kernel keeps how far it had come
)

// Restart tells how the thread's system call goes on.
func (r *Regs) Restart() Restart {
	if int64(r.OrigAX) < 0 {
		return NoRestart
	}
	switch int64(r.AX) {
	case errRestartSys, errRestartNoIntr, errRestartNoHand:
		return RestartSame
	case errRestartByBlock:
		return RestartByBlock
	}
	return NoRestart
}

// FixRestart does by hand what the kernel does when it resumes an interrupted thread, for registers that will be
// set where the kernel does not do it: in a signal frame, or in an image.
//
// Of a call whose progress only the kernel knew, a sleep that reports the remaining time has reported it by now and
// returns EINTR; any other is made again with its whole timeout, because callers of poll or futex are not prepared for an
// EINTR without a signal.
func (r *Regs) FixRestart() {
	restart := r.Restart()
	if restart == RestartByBlock && r.sleepReportsRest() {
		r.AX = ^uint64(eintr - 1)
		return
	}
	if restart != NoRestart {
		r.AX = r.OrigAX
		r.IP -= syscallInstrBytes
	}
}

const (
	eintr             = 4
	sysPoll           = 7
	sysNanosleep      = 35
	sysRestart        = 219
	sysClockNanosleep = 230
)

// restarted says whether the thread's call has been resumed by restart_syscall before.
func (r *Regs) restarted() bool { return r.Restart() == RestartByBlock && r.SyscallNr() == sysRestart }

// callAddr is the address of the system call instruction.
func (r *Regs) callAddr() uint64 { return r.IP - syscallInstrBytes }

func (r *Regs) setSyscallNr(nr uint32) { r.OrigAX = uint64(nr) }

// loadedNumber is the number that the last "mov $nr, %eax" of a text loads, if such a call can have been restarted.
func loadedNumber(text []byte) (nr uint32, ok bool) {
	const movEAX, size = 0xb8, 5
	for at := len(text) - size; at >= 0; at-- {
		if text[at] != movEAX {
			continue
		}
		switch nr := binary.LittleEndian.Uint32(text[at+1:]); nr {
		case sysPoll, sysNanosleep, sysFutex, sysClockNanosleep:
			return nr, true
		}
	}
	return 0, false
}

func (r *Regs) sleepReportsRest() bool {
	switch r.SyscallNr() {
	case sysNanosleep:
		return r.SyscallArg(1) != 0
	case sysClockNanosleep:
		return r.SyscallArg(3) != 0
	}
	return false
}

// BlobOp is the address of the operation the interpreter is at.
func (r *Regs) BlobOp() uint64 { return r.R13 }
