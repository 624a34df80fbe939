package restorers

import (
	"fmt"
	"slices"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// Space is the address space of a node on its way from what it inherits to what it is to be.
type Space struct {
	*Layout
	Change *Change
	Base   *Node   // whose pages are inherited; nil for the root
	Have   []*Area // special areas as inherited
	Parts  []Part
}

// PlanSpace prepares the address space of task n. base is the task whose memory its forker has, nil for the root.
func PlanSpace(n, base *Node, layouts map[*Node]*Layout) *Space {
	s := &Space{Layout: layouts[n], Base: base}
	var have []*Area
	if base != nil {
		have, s.Have = layouts[base].Areas, layouts[base].Special
	}
	s.Change = Diff(have, s.Areas)
	s.Parts = PartsOf(s.Change, s.Special)
	return s
}

// Park is a place for special areas while everything else changes.
type Park struct {
	At   uint64
	Size uint64
}

// EmitSpecial moves the areas the kernel made from where they are to where they are to be, in two steps: the first takes
// them out of the way, the second, when all else is unmapped, puts them down.
func EmitSpecial(b *remote.Builder, have, want []*Area, park Park) (second func(), err error) {
	want, err = matchSpecial(have, want)
	if err != nil {
		return nil, err
	}
	at := park.At
	type move struct{ from, to, size uint64 }
	var moves []move
	for i, h := range have {
		w := want[i]
		switch {
		case w == nil:
			b.Call(unix.SYS_MUNMAP, remote.Imm(h.Start), remote.Imm(h.Len())).Must().Discard()
			continue
		case h.Start == w.Start:
			continue
		case at+h.Len() > park.At+park.Size:
			return nil, fmt.Errorf("the areas of the vdso do not fit the room kept for them")
		}
		mremap(b, h.Start, h.Len(), at)
		moves = append(moves, move{at, w.Start, h.Len()})
		at += h.Len()
	}
	return func() {
		for _, m := range moves {
			mremap(b, m.from, m.size, m.to)
		}
	}, nil
}

// Compares says whether the pages of the task that forked this one are read again, because it inherits some.
func (s *Space) Compares() bool { return s.Base != nil && inherits(s.Parts) }

// SpecialNow lists the special areas as inherited, in the pieces the kernel here makes them of.
func (s *Space) SpecialNow(kernel []*Area) ([]*Area, error) {
	if s.Base == nil {
		return kernel, nil
	}
	have, err := matchSpecial(kernel, s.Have)
	return slices.DeleteFunc(have, func(a *Area) bool { return a == nil }), err
}

// matchSpecial cuts the special areas of the set as the kernel here has them, one for one and nil for what a task is not
// to have: images have the data of the vdso in one piece, where newer kernels have two, and a task may have unmapped all.
func matchSpecial(have, want []*Area) ([]*Area, error) {
	cut := make([]*Area, len(have))
	for _, kind := range []uint32{vma.StatusVDSO, vma.StatusVVAR} {
		var pieces []*Area
		for _, w := range want {
			if w.Is(kind) {
				pieces = append(pieces, w)
			}
		}
		if len(pieces) == 0 {
			continue
		}
		n, at := 0, pieces[0].Start
		for i, h := range have {
			if !h.Is(kind) {
				continue
			}
			if n == len(pieces) || at+h.Len() > pieces[n].End {
				n = -1
				break
			}
			cut[i] = &Area{Start: at, End: at + h.Len(), Status: h.Status}
			if at += h.Len(); at == pieces[n].End {
				if n++; n < len(pieces) {
					at = pieces[n].Start
				}
			}
		}
		if n != len(pieces) {
			return nil, fmt.Errorf("%s of the vdso is laid out otherwise than by this kernel", pieces[0])
		}
	}
	return cut, nil
}

func mremap(b *remote.Builder, from, size, to uint64) {
	b.Call(unix.SYS_MREMAP, remote.Imm(from), remote.Imm(size), remote.Imm(size),
		remote.Imm(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED), remote.Imm(to)).Expect(to)
}

// EmitUnmap drops what is inherited and not wanted.
func (s *Space) EmitUnmap(b *remote.Builder) {
	for _, r := range s.Change.Unmap {
		b.CallNumbers(unix.SYS_MUNMAP, r.Start, r.Len()).Must().Discard()
	}
}

// Opener opens a file of the set in a program and returns the descriptor. What it opened is closed by the program's end.
type Opener func(b *remote.Builder, file uint64, flags uint32) (remote.Arg, error)

// EmitMap makes the mappings that are not inherited, but for shared anonymous memory and rings of sockets. Private ones that get pages are
// writable for now.
func (s *Space) EmitMap(b *remote.Builder, open Opener) error {
	b.Grow(len(s.Change.Map))
	for _, a := range s.Change.Map {
		if a.SharedAnon() || a.Is(vma.StatusSocket) { // see FilePlan.EmitRings
			continue
		}
		if err := mmap(b, a, fillProt(a), open); err != nil {
			return err
		}
		if a.Is(vma.StatusAnonPrivate) && a.Madvise&(1<<unix.MADV_HUGEPAGE) != 0 {
			// Before it is written: huge pages are made then. It is inherited, and told again with the rest.
			b.Call(unix.SYS_MADVISE, remote.Imm(a.Start), remote.Imm(a.Len()), remote.Imm(unix.MADV_HUGEPAGE)).Must().Discard()
		}
	}
	return nil
}

// fillProt is the protection an area has while its pages are written.
func fillProt(a *Area) uint32 {
	if a.Private() && a.HasPages {
		return a.Prot | unix.PROT_WRITE
	}
	return a.Prot
}

// noFile is the descriptor that mmap takes where there is none.
const noFile = ^uint64(0)

func mmap(b *remote.Builder, a *Area, prot uint32, open Opener) error {
	switch {
	case a.Is(vma.StatusSysV):
		emitAttach(b, a)
		return nil
	case a.Is(vma.StatusShadowStack), a.Is(vma.StatusUprobes):
		return fmt.Errorf("%s: mappings of status %#x are not built yet", a, a.Status)
	}
	flags := a.Flags&^(unix.MAP_LOCKED|unix.MAP_POPULATE) | unix.MAP_FIXED_NOREPLACE
	off := a.Offset
	if a.Is(vma.StatusAIORing) { // a place for its contents until there is a context
		flags = flags&^unix.MAP_TYPE | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	}
	if !a.File() {
		b.CallNumbers(unix.SYS_MMAP, a.Start, a.Len(), uint64(prot), uint64(flags), noFile, 0).Expect(a.Start)
		return nil
	}
	fd, err := open(b, a.Object, a.OpenFlags)
	if err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	flags &^= unix.MAP_ANONYMOUS
	b.Call(unix.SYS_MMAP, remote.Imm(a.Start), remote.Imm(a.Len()), remote.Imm(prot), remote.Imm(flags), fd, remote.Imm(off)).Expect(a.Start)
	return nil
}

// EmitProtect drops inherited pages the task does not have, and gives mappings their protection. late is where pages come
// later.
func (s *Space) EmitProtect(b *remote.Builder, drop, late []Range) {
	for _, r := range drop {
		b.CallNumbers(unix.SYS_MADVISE, r.Start, r.Len(), unix.MADV_DONTNEED).Must().Discard()
	}
	for _, a := range s.Change.Map {
		if fillProt(a) == a.Prot {
			continue
		}
		if slices.ContainsFunc(late, func(r Range) bool { return r.Start < a.End && a.Start < r.End }) {
			keepAccounted(b, a)
		}
		mprotect(b, a)
	}
	for _, k := range s.Change.Kept {
		if k.Had != k.Prot {
			mprotect(b, k.Area)
		}
	}
}

// keepAccounted makes a page of an area and drops it again: the kernel takes memory that never had one off the account when
// it becomes unwritable, and the dumped one was on it. Before Linux 5.14, where it cannot be made so, it does not matter.
func keepAccounted(b *remote.Builder, a *Area) {
	b.Call(unix.SYS_MADVISE, remote.Imm(a.Start), remote.Imm(image.PageSize), remote.Imm(unix.MADV_POPULATE_WRITE)).Discard()
	b.Call(unix.SYS_MADVISE, remote.Imm(a.Start), remote.Imm(image.PageSize), remote.Imm(unix.MADV_DONTNEED)).Must().Discard()
}

func mprotect(b *remote.Builder, a *Area) {
	b.CallNumbers(unix.SYS_MPROTECT, a.Start, a.Len(), uint64(a.Prot)).Must().Discard()
}

// EmitAdvice puts on what a fork does not hand on and what would keep areas from being handed on: locks, advice, guards.
// It follows the last fork.
func (s *Space) EmitAdvice(b *remote.Builder) {
	for _, a := range s.Areas {
		for m := range 64 {
			if a.Madvise&(1<<m) != 0 {
				b.CallNumbers(unix.SYS_MADVISE, a.Start, a.Len(), uint64(m)).Must().Discard()
			}
		}
		if a.Flags&unix.MAP_LOCKED != 0 {
			how := 0
			if a.Watched { // no page is to be made
				how = mlockOnFault
			}
			lock := b.Call(unix.SYS_MLOCK2, remote.Imm(a.Start), remote.Imm(a.Len()), remote.Imm(how))
			if a.Prot == unix.PROT_NONE || a.File() {
				// Locked all the same, the kernel only complains that pages cannot be touched: mlockall(2) locks such areas.
				lock.Allow(unix.ENOMEM)
			} else {
				lock.Must()
			}
		}
	}
	for _, g := range s.Guards {
		b.CallNumbers(unix.SYS_MADVISE, g.Start, g.Len(), madvGuardInstall).Must().Discard()
	}
}

const mlockOnFault = 1 // MLOCK_ONFAULT, Linux 4.4

const madvGuardInstall = 102 // MADV_GUARD_INSTALL, Linux 6.13
