package arch

import "debug/elf"

// The largest page size of an arm64 kernel.
const blobPage = 65536

const (
	sysNrGettid       = 178
	sysNrTkill        = 130
	sysNrRtSigreturn  = 139
	sysNrFutex        = 98
	syscallInstrBytes = 4
)

var (
	blobMark     = []byte("\xad\xde\x00\x00BLOBEND\x00")
	syscallInstr = []byte{0x01, 0x00, 0x00, 0xd4} // svc #0
)

// FindSyscall returns the offset of the first instruction in text that enters the kernel, -1 without one. text begins
// with an instruction.
func FindSyscall(text []byte) int { return indexAligned(text, syscallInstr) }

// NeedsICacheFlush says whether code written through process_vm_writev may be missed by the instruction cache, so
// that it has to be written through /proc/pid/mem.
const NeedsICacheFlush = true

// ELFMachine is the architecture in ELF headers.
const ELFMachine = elf.EM_AARCH64
