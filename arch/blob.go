//lint:file-ignore U1000 constants and the interpreter are used by the assembler

package arch

import (
	"bytes"
	"sync"
	"unsafe"
)

// BlobPage is how far behind the start of the interpreter an exec'ed copy of it looks for its program buffer: one
// page of the largest size a kernel of this architecture may use.
const BlobPage = blobPage

// Numbers of the system calls the interpreter makes by itself; the assembler sees constants of this package only.
const (
	sysGettid      = sysNrGettid
	sysTkill       = sysNrTkill
	sysRtSigreturn = sysNrRtSigreturn
	sysFutex       = sysNrFutex
	sysClone3      = 435
)

// blob is the interpreter; it is never called from Go.
func blob()

// blobAddr tells the address of blob's first instruction. Taking the address of the function in Go would give a
// wrapper of the ABI instead.
func blobAddr() uintptr

// cloneInto calls clone3 and sends the child into the interpreter at code with the given buffer and operation.
// It returns the child's pid or a negative error number. Signals have to be blocked around it.
//
//go:noescape
func cloneInto(args *CloneArgs, size uintptr, code, base, op uintptr) (pid int64)

const maxBlob = 8192

// Code returns a copy of the interpreter's machine code. It may be put at any address; its first byte is its entry.
var Code = sync.OnceValue(func() []byte {
	text := unsafe.Slice((*byte)(unsafe.Add(nil, blobAddr())), maxBlob)
	end := bytes.Index(text, blobMark)
	if end < 0 {
		panic("arch: the interpreter has no end mark")
	}
	return bytes.Clone(text[:end+len(blobMark)])
})

// SyscallOffset is the offset in Code of an instruction that enters the kernel.
var SyscallOffset = sync.OnceValue(func() int {
	i := FindSyscall(Code())
	if i < 0 {
		panic("arch: the interpreter has no system call instruction")
	}
	return i
})

// CloneArgs is the kernel's struct clone_args (clone3, kernel 5.3; SetTid 5.5; Cgroup 5.7).
type CloneArgs struct {
	Flags      uint64
	PidFD      uint64
	ChildTID   uint64
	ParentTID  uint64
	ExitSignal uint64
	Stack      uint64
	StackSize  uint64
	TLS        uint64
	SetTID     uint64
	SetTIDSize uint64
	Cgroup     uint64
}

// Bytes is the memory of a, as the kernel wants it.
func (a *CloneArgs) Bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(a)), unsafe.Sizeof(*a))
}

// CloneHere makes a child of the calling process that runs the interpreter at address code of the caller's memory
// (or of its copy, without CLONE_VM) on the program buffer at base, beginning at its first operation. The caller
// has locked its thread and blocked all signals, so that no handler of the Go runtime runs in the child.
// The result is the child's pid or a negative error number.
//
//go:nosplit
func CloneHere(args *CloneArgs, code, base uintptr) int64 {
	return cloneInto(args, unsafe.Sizeof(*args), code, base, base+HdrSize)
}

// BlobHere is the address of the interpreter in this very process.
func BlobHere() uintptr { return blobAddr() }
