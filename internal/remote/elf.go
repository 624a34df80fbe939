package remote

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"cryo/arch"
)

// The restorer's executable: one page of headers, the interpreter, one page with its program.
const (
	stubHeader = arch.BlobPage
	stubBuffer = stubHeader + arch.BlobPage
	stubSize   = stubBuffer + arch.BlobPage
)

// stubELF is the restorer's executable, at base: it sleeps until its tracer has it.
func stubELF(base uint64) ([]byte, error) { return executable(base, sleepForever()) }

// executableBase is where an executable lies in its empty address space.
const executableBase = 4 << 20

// Executable is an ELF executable that runs one program and has nothing else in it: no stack of its own, no library. A
// program that comes to its end dies by a breakpoint.
func Executable(p *Program) ([]byte, error) { return executable(executableBase, p) }

// executable consists of the interpreter at base+stubHeader and a program behind it. It has a fixed address, so nothing in
// it is relocated.
func executable(base uint64, p *Program) ([]byte, error) {
	const phdrs = 2
	size := stubBuffer + alignUp(p.Size(), arch.BlobPage)
	header := elf.Header64{
		Ident:     [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:      uint16(elf.ET_EXEC),
		Machine:   uint16(arch.ELFMachine),
		Version:   uint32(elf.EV_CURRENT),
		Entry:     base + stubHeader,
		Phoff:     uint64(binary.Size(elf.Header64{})),
		Ehsize:    uint16(binary.Size(elf.Header64{})),
		Phentsize: uint16(binary.Size(elf.Prog64{})),
		Phnum:     phdrs,
	}
	progs := [phdrs]elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Vaddr: base, Paddr: base,
			Filesz: uint64(size), Memsz: uint64(size), Align: arch.BlobPage},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)},
	}
	var b bytes.Buffer
	for _, part := range []any{header, progs} {
		if err := binary.Write(&b, le, part); err != nil {
			return nil, err
		}
	}
	image := make([]byte, size)
	copy(image, b.Bytes())
	copy(image[stubHeader:], arch.Code())
	copy(image[stubBuffer:], whole(p))
	return image, nil
}

// whole is a program in binary form, in one piece.
func whole(p *Program) []byte { return p.wholeImage() }

// sleepForever is what a new task runs until its tracer has it.
func sleepForever() *Program {
	b := NewBuilder("wait for the tracer")
	again := b.NewLabel()
	b.Label(again)
	b.Call(sysPpoll, Imm(0), Imm(0), Imm(0), Imm(0), Imm(0)).Discard()
	b.Jump(again)
	return b.Program()
}
