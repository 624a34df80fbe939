package arch

import (
	"bytes"
	"debug/elf"
)

const (
	blobPage          = 4096
	sysNrGettid       = 186
	sysNrTkill        = 200
	sysNrRtSigreturn  = 15
	sysNrFutex        = 202
	writesNeedICache  = false
	syscallInstrBytes = 2
)

var (
	blobMark     = []byte("\x0f\x0bBLOBEND\x0f\x0b")
	syscallInstr = []byte{0x0f, 0x05}
)

// FindSyscall returns the offset of the first instruction in text that enters the kernel, -1 without one.
func FindSyscall(text []byte) int { return bytes.Index(text, syscallInstr) }

// NeedsICacheFlush says whether code written through process_vm_writev may be missed by the instruction cache, so
// that it has to be written through /proc/pid/mem.
const NeedsICacheFlush = writesNeedICache

// ELFMachine is the architecture in ELF headers.
const ELFMachine = elf.EM_X86_64
