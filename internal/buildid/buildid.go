// Package buildid reads the build id of an ELF file: the note NT_GNU_BUILD_ID (3) of its program headers, by which a
// restore recognises the executables and libraries of a dump (reg_file_entry.build_id). The file is not trusted: every
// offset in it is bounded.
package buildid

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"

	"golang.org/x/sys/unix"
)

// Reach is how far into a file the note is looked for, as criu does: 1 MiB.
const Reach = 1 << 20

// maxID is the longest id that is believed.
const maxID = 512

// file reads a descriptor by offset.
type file int

func (f file) ReadAt(p []byte, off int64) (int, error) {
	n, err := unix.Pread(int(f), p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return max(n, 0), err
}

// Words returns the id of the ELF file behind a descriptor as the 32-bit words an image holds, zero-padded; nil when it
// is no ELF file or has none. size is the file's size.
func Words(fd int, size int64) []uint32 {
	id := Read(file(fd), size)
	if id == nil {
		return nil
	}
	id = append(id, make([]byte, (4-len(id)%4)%4)...)
	words := make([]uint32, len(id)/4)
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(id[4*i:])
	}
	return words
}

// Read returns the build id of an ELF file of the given size; nil when it is no ELF file or has none.
func Read(r io.ReaderAt, size int64) []byte {
	var head [64]byte
	if n, _ := r.ReadAt(head[:], 0); n < 52 || !bytes.Equal(head[:4], []byte(elf.ELFMAG)) {
		return nil
	}
	limit := uint64(min(size, Reach))
	order, ok := map[byte]binary.ByteOrder{1: binary.LittleEndian, 2: binary.BigEndian}[head[elf.EI_DATA]]
	if !ok {
		return nil
	}
	var phoff uint64
	var entsize, num, off32, size32 int
	wide := elf.Class(head[elf.EI_CLASS]) == elf.ELFCLASS64
	if wide {
		phoff, entsize, num = order.Uint64(head[32:]), int(order.Uint16(head[54:])), int(order.Uint16(head[56:]))
	} else {
		phoff, entsize, num = uint64(order.Uint32(head[28:])), int(order.Uint16(head[42:])), int(order.Uint16(head[44:]))
		off32, size32 = 4, 16
	}
	if entsize < 32 || entsize > 256 || phoff > limit || phoff+uint64(entsize*num) > limit {
		return nil
	}
	table := make([]byte, entsize*num)
	if _, err := r.ReadAt(table, int64(phoff)); err != nil {
		return nil
	}
	for i := range num {
		ph := table[i*entsize : (i+1)*entsize]
		if elf.ProgType(order.Uint32(ph)) != elf.PT_NOTE {
			continue
		}
		off, n := uint64(order.Uint32(ph[off32:])), uint64(order.Uint32(ph[size32:]))
		if wide {
			off, n = order.Uint64(ph[8:]), order.Uint64(ph[32:])
		}
		if off > limit || n > limit || off+n > limit {
			continue
		}
		notes := make([]byte, n)
		if _, err := r.ReadAt(notes, int64(off)); err != nil {
			continue
		}
		if id := find(notes, order); id != nil {
			return id
		}
	}
	return nil
}

// find walks the notes of one segment.
func find(notes []byte, order binary.ByteOrder) []byte {
	const typeBuildID = 3
	for len(notes) >= 12 {
		name, desc := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:]))
		typ := order.Uint32(notes[8:])
		start := 12 + (name+3)&^3
		end := start + desc
		if end > uint64(len(notes)) {
			return nil
		}
		if typ == typeBuildID {
			if desc == 0 || desc > maxID {
				return nil
			}
			return bytes.Clone(notes[start:end])
		}
		notes = notes[min((end+3)&^3, uint64(len(notes))):]
	}
	return nil
}
