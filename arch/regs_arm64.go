package arch

import (
	"encoding/binary"
	"unsafe"
)

// Regs is the kernel's struct user_pt_regs, register set NT_PRSTATUS, and the number of the system call the thread is
// in, which arm64 has in a set of its own (NT_ARM_SYSTEM_CALL).
type Regs struct {
	X      [31]uint64
	SP     uint64
	IP     uint64
	PState uint64
}

// Bytes is the memory of r, as PTRACE_GETREGSET and PTRACE_SETREGSET want it.
func (r *Regs) Bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r)) }

// PC is the program counter.
func (r *Regs) PC() uint64 { return r.IP }

// SetPC sets the program counter.
func (r *Regs) SetPC(pc uint64) { r.IP = pc }

// StackPointer is the stack pointer.
func (r *Regs) StackPointer() uint64 { return r.SP }

// SyscallNr is the number of the system call the thread is in, if it is in one: arm64 keeps it in X8.
func (r *Regs) SyscallNr() int64 { return int64(int32(r.X[8])) }

// SyscallResult is the value the system call returned (or is about to return).
func (r *Regs) SyscallResult() int64 { return int64(r.X[0]) }

// SyscallArg is argument i (0 to 5) of the system call the thread is in. Argument 0 shares its register with the result.
func (r *Regs) SyscallArg(i int) uint64 { return r.X[i] }

// Compat says whether the thread runs 32-bit code.
func (r *Regs) Compat() bool { return r.PState&(1<<4) != 0 }

// SetupCall returns registers for which the thread, at a system call instruction at address at, makes system call
// nr. Nothing else of the thread's registers matters to the call; r itself is left alone.
func (r *Regs) SetupCall(at uint64, nr uint64, args ...uint64) Regs {
	c := *r
	c.IP = at
	c.X[8] = nr
	var a [OpArgs]uint64
	copy(a[:], args)
	copy(c.X[:], a[:])
	c.PState &^= pstateBranchType
	return c
}

// SetupBlob returns registers for which the thread runs the interpreter at address code, on the program buffer at
// base, from the operation at address op.
func (r *Regs) SetupBlob(code, base, op uint64) Regs {
	c := *r
	c.IP = code
	c.X[0] = 0 // no result the kernel could take for a system call to be restarted
	c.X[19], c.X[20] = base, op
	c.PState &^= pstateBranchType
	return c
}

// BlobOp is the address of the operation the interpreter is at.
func (r *Regs) BlobOp() uint64 { return r.X[20] }

// pstateBranchType says that the next instruction has to be a branch target. It is left over where a thread stopped on
// an indirect branch.
const pstateBranchType = 3 << 10

// Restart tells how the thread's system call goes on. On arm64 the kernel winds an interrupted call back before the
// tracer sees the thread, so it is always the program counter that says it: the call is made again, with its whole
// timeout if its progress was known to the kernel only and the thread has run anything else meanwhile.
func (r *Regs) Restart() Restart { return NoRestart }

// FixRestart has nothing to do on arm64, see Restart.
func (r *Regs) FixRestart() {}

const (
	sysNanosleep      = 101
	sysClockNanosleep = 115
	sysRestart        = 128
)

// restarted says whether the thread is about to make restart_syscall.
func (r *Regs) restarted() bool { return r.SyscallNr() == sysRestart }

// callAddr is the address of the system call instruction, to which the kernel has wound back.
func (r *Regs) callAddr() uint64 { return r.IP }

func (r *Regs) setSyscallNr(nr uint32) { r.X[8] = uint64(nr) }

// loadedNumber is the number that the last "mov x8, #nr" (or w8) of a text loads, if such a call can have been restarted.
func loadedNumber(text []byte) (nr uint32, ok bool) {
	const movW8, shift, size = 0x52800008, 5, 4
	for at := len(text) - size; at >= 0; at -= size {
		instr := binary.LittleEndian.Uint32(text[at:])
		if instr&^(1<<31|0xffff<<shift) != movW8 { // bit 31 makes it x8
			continue
		}
		switch nr := instr >> shift & 0xffff; nr {
		case sysFutex, sysNanosleep, sysClockNanosleep:
			return nr, true
		}
	}
	return 0, false
}
