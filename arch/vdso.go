package arch

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"
)

// VDSO is the kernel's shared object in a task: which functions it has and where. Programs keep the addresses of those
// functions, so a restored task needs each where it was.
type VDSO struct {
	Size    uint64   // bytes of the mapping [vdso]
	Symbols []Symbol // functions, by offset
}

// Symbol is a function of a vdso.
type Symbol struct {
	Name   string
	Offset uint64
	Size   uint64
}

const (
	maxVDSOSize    = 1 << 20
	maxVDSOSymbols = 256
)

// ParseVDSO reads the symbols of a vdso from its memory: the whole mapping, which may come from an image.
func ParseVDSO(mem []byte) (*VDSO, error) {
	if len(mem) > maxVDSOSize {
		return nil, fmt.Errorf("a vdso of %d bytes is too large", len(mem))
	}
	f, err := elf.NewFile(bytes.NewReader(mem))
	if err != nil {
		return nil, fmt.Errorf("parse vdso: %w", err)
	}
	if f.Machine != ELFMachine || f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("parse vdso: it is a %v for %v", f.Type, f.Machine)
	}
	syms, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("parse vdso: %w", err)
	}
	base := uint64(0)
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			base = p.Vaddr
			break
		}
	}
	v := &VDSO{Size: uint64(len(mem))}
	for _, s := range syms {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC && elf.ST_TYPE(s.Info) != elf.STT_NOTYPE || s.Section == elf.SHN_UNDEF || s.Section == elf.SHN_ABS {
			continue
		}
		off := s.Value - base
		if off >= v.Size || s.Size > v.Size-off {
			return nil, fmt.Errorf("parse vdso: %s lies outside of it", s.Name)
		}
		v.Symbols = append(v.Symbols, Symbol{s.Name, off, s.Size})
		if len(v.Symbols) > maxVDSOSymbols {
			return nil, errors.New("parse vdso: too many symbols")
		}
	}
	if len(v.Symbols) == 0 {
		return nil, errors.New("parse vdso: it has no functions")
	}
	slices.SortFunc(v.Symbols, func(a, b Symbol) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Name, b.Name))
	})
	return v, nil
}

// Same says whether a task made for one vdso can run with the other in its place.
func (v *VDSO) Same(o *VDSO) bool {
	return v.Size == o.Size && slices.EqualFunc(v.Symbols, o.Symbols, func(a, b Symbol) bool {
		return a.Name == b.Name && a.Offset == b.Offset
	})
}

// Lookup is the offset of a function.
func (v *VDSO) Lookup(name string) (uint64, bool) {
	for _, s := range v.Symbols {
		if s.Name == name {
			return s.Offset, true
		}
	}
	return 0, false
}

// Patch is bytes to be written over those at an offset of a vdso.
type Patch struct {
	Offset uint64
	Bytes  []byte
}

// Redirect returns patches for an old vdso v, kept as ordinary memory of the task, that lead each of its functions into
// the vdso now of this kernel, which lies at address at. A function the kernel does not have any more becomes its system
// call.
func (v *VDSO) Redirect(now *VDSO, at uint64) ([]Patch, error) {
	var patches []Patch
	for i, s := range v.Symbols {
		if i > 0 && v.Symbols[i-1].Offset == s.Offset && len(patches) > 0 && patches[len(patches)-1].Offset == s.Offset {
			continue // another name of the same function
		}
		var code []byte
		if off, ok := now.Lookup(s.Name); ok {
			code = jumpTo(at + off)
		} else if code = vdsoSyscall[s.Name]; code == nil {
			continue // nothing this kernel could do about it either
		}
		if room := v.room(i); room < uint64(len(code)) {
			return nil, fmt.Errorf("%s of the image's vdso has %d bytes, too few to redirect it", s.Name, room)
		}
		patches = append(patches, Patch{s.Offset, code})
	}
	return patches, nil
}

// room is how many bytes function i has until the next one begins.
func (v *VDSO) room(i int) uint64 {
	for _, next := range v.Symbols[i+1:] {
		if next.Offset > v.Symbols[i].Offset {
			return next.Offset - v.Symbols[i].Offset
		}
	}
	return v.Size - v.Symbols[i].Offset
}

const (
	atNull        = 0
	atSysinfoEhdr = 33
)

// OwnVDSO is the memory of the vdso this kernel maps, as this process has it.
func OwnVDSO() ([]byte, error) {
	addr, err := OwnVDSOAddress()
	if err != nil {
		return nil, err
	}
	at := unsafe.Add(nil, uintptr(addr))
	size, err := mappedSize(unsafe.Slice((*byte)(at), os.Getpagesize()))
	if err != nil {
		return nil, err
	}
	return bytes.Clone(unsafe.Slice((*byte)(at), size)), nil
}

// OwnVDSOAddress is where this process has its vdso.
func OwnVDSOAddress() (uint64, error) {
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return 0, err
	}
	for ; len(auxv) >= 16 && le.Uint64(auxv) != atNull; auxv = auxv[16:] {
		if le.Uint64(auxv) == atSysinfoEhdr {
			return le.Uint64(auxv[8:]), nil
		}
	}
	return 0, errors.New("this kernel maps no vdso")
}

// mappedSize is the size of the mapping of a vdso, whose sections may lie behind its segments.
func mappedSize(header []byte) (int, error) {
	var h elf.Header64
	if len(header) < int(unsafe.Sizeof(h)) || string(header[:4]) != elf.ELFMAG {
		return 0, errors.New("the vdso is no ELF object")
	}
	shoff, shentsize, shnum := le.Uint64(header[40:]), le.Uint16(header[58:]), le.Uint16(header[60:])
	page := uint64(os.Getpagesize())
	return int((shoff + uint64(shentsize)*uint64(shnum) + page - 1) &^ (page - 1)), nil
}
