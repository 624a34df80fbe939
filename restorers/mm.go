package restorers

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"cryo/arch"
	"cryo/internal/image"
	"cryo/internal/vma"

	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
)

// Area is one mapping to restore, or a part of one.
type Area struct {
	Start, End uint64
	Offset     uint64 // in the file or shared object
	Prot       uint32
	Flags      uint32 // of mmap
	Status     uint32 // vma.Status*
	Object     uint64 // file id, or id of the shared anonymous object
	OpenFlags  uint32 // how a mapped file is opened
	Madvise    uint64 // bit N: madvise(N)
	HasPages   bool   // the page map has something for it
	Rest       uint64 // how many bytes the SysV segment has behind it
	ShmemSize  uint64 // of the shared anonymous object, 0 where that ends with the last view
	Watched    bool   // by a userfaultfd of the set: what is a hole has to stay one
}

// Len is the length in bytes.
func (a *Area) Len() uint64 { return a.End - a.Start }

// Is says whether all bits of status are set.
func (a *Area) Is(status uint32) bool { return a.Status&status == status }

// Private says whether pages of the area are the task's own.
func (a *Area) Private() bool {
	return a.Is(vma.StatusAnonPrivate) || a.Is(vma.StatusFilePrivate) || a.Is(vma.StatusAIORing)
}

// File says whether a file of the set is mapped.
func (a *Area) File() bool { return a.Is(vma.StatusFilePrivate) || a.Is(vma.StatusFileShared) }

// SharedAnon says whether it is a view of shared anonymous memory.
func (a *Area) SharedAnon() bool { return a.Is(vma.StatusAnonShared) && !a.Is(vma.StatusSysV) }

// Special says whether the kernel made the area: vdso and its data.
func (a *Area) Special() bool { return a.Status&(vma.StatusVDSO|vma.StatusVVAR) != 0 }

func (a *Area) String() string { return fmt.Sprintf("mapping %x-%x", a.Start, a.End) }

// cut is the part of a between start and end.
func (a *Area) cut(start, end uint64) *Area {
	if start == a.Start && end == a.End {
		return a
	}
	b := *a
	b.Start, b.End = start, end
	if a.File() || a.Status&vma.StatusAnonShared != 0 {
		b.Offset += start - a.Start
	}
	return &b
}

// inherits says whether a range that lies in both p, an area of a forker, and a, is the same memory after a fork. What a
// fork does not hand on, or what is told with madvise, is put on after the last fork and does not count here.
func (a *Area) inherits(p *Area) bool {
	const kind = vma.StatusRegular | vma.StatusFilePrivate | vma.StatusFileShared | vma.StatusAnonShared |
		vma.StatusAnonPrivate | vma.StatusSysV | vma.StatusSocket | vma.StatusAIORing | vma.StatusMemfd | vma.StatusShadowStack
	const flags = ^uint32(unix.MAP_LOCKED | unix.MAP_POPULATE)
	if a.Status&kind != p.Status&kind || a.Flags&flags != p.Flags&flags || a.Status&(vma.StatusAIORing|vma.StatusSocket) != 0 {
		return false
	}
	if a.Watched && a.Private() {
		return false
	}
	if a.Is(vma.StatusAnonPrivate) {
		return true
	}
	return a.Object == p.Object && a.Offset-a.Start == p.Offset-p.Start && a.OpenFlags == p.OpenFlags
}

// Layout is the address space of a task as it is to be.
type Layout struct {
	Areas   []*Area  // ascending, no two overlap
	Special []*Area  // vdso and its data
	Pages   *Pagemap // nil when it is large
	Guards  []*Area  // ranges with MADV_GUARD_INSTALL inside of Areas

	OldVDSO Range        // the vdso of another kernel among Areas, see VDSO
	Patches []arch.Patch // what leads from it to this kernel's, at addresses of the task
}

// PlanLayout reads and checks the mappings of t.
func PlanLayout(t *Task) (*Layout, error) {
	file := image.MM.File(uint64(t.PID))
	l := &Layout{}
	var end uint64
	room := make([]Area, len(t.MM.Vmas))
	for i, e := range t.MM.Vmas {
		a := &room[i]
		*a = areaOf(e)
		if err := checkArea(a); err != nil {
			return nil, image.Errorf(file, 0, "vmas[%d]: %w", i, err)
		}
		if a.Is(vma.StatusGuard) {
			l.Guards = append(l.Guards, a)
			continue
		}
		if a.Is(vma.StatusVsyscall) {
			continue
		}
		if a.Start < end {
			return nil, image.Errorf(file, 0, "vmas[%d]: %s begins before the end of the one before, %x", i, a, end)
		}
		end = a.End
		switch {
		case a.Special():
			l.Special = append(l.Special, a)
		case a.Is(vma.StatusRegular) || a.Is(vma.StatusAIORing):
			l.Areas = append(l.Areas, a)
		default:
			return nil, image.Errorf(file, 0, "vmas[%d]: %s has status %#x, which is no kind of mapping", i, a, a.Status)
		}
	}
	return l, nil
}

func areaOf(e *vmapb.VmaEntry) Area {
	return Area{Start: e.GetStart(), End: e.GetEnd(), Offset: e.GetPgoff(), Prot: e.GetProt(), Flags: e.GetFlags(),
		Status: e.GetStatus(), Object: e.GetShmid(), OpenFlags: e.GetFdflags(), Madvise: e.GetMadv(), ShmemSize: image.GetShmemSize(e)}
}

// mapHugeMask are the bits that hold the size of huge pages.
const mapHugeMask = 0x3f << 26

func checkArea(a *Area) error {
	const page = image.PageSize - 1
	switch {
	case a.Start >= a.End || (a.Start|a.End|a.Offset)&page != 0:
		return fmt.Errorf("%s with offset %#x is no range of pages", a, a.Offset)
	case a.Is(vma.StatusVsyscall):
		return nil
	case a.End > TaskSize:
		return fmt.Errorf("%s is outside of a task's address space, which ends at %x", a, uint64(TaskSize))
	case a.Offset+a.Len() < a.Offset:
		return fmt.Errorf("%s with offset %#x ends past the largest file", a, a.Offset)
	case a.Is(vma.StatusGuard):
		return nil
	case a.Prot&^(unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC) != 0:
		return fmt.Errorf("%s has protection %#x, which is not known", a, a.Prot)
	case a.Flags&^(unix.MAP_TYPE|unix.MAP_ANONYMOUS|unix.MAP_GROWSDOWN|unix.MAP_LOCKED|unix.MAP_NORESERVE|unix.MAP_HUGETLB|mapHugeMask) != 0:
		return fmt.Errorf("%s has flags %#x, some of which are not known", a, a.Flags)
	}
	kinds := 0
	for _, k := range []uint32{vma.StatusFilePrivate, vma.StatusFileShared, vma.StatusAnonShared, vma.StatusAnonPrivate} {
		if a.Is(k) {
			kinds++
		}
	}
	if a.Is(vma.StatusRegular) && kinds != 1 && !a.Is(vma.StatusSocket) && !a.Special() {
		return fmt.Errorf("%s has status %#x, which is no kind of mapping", a, a.Status)
	}
	shared, anon := a.Is(vma.StatusFileShared) || a.Is(vma.StatusAnonShared), a.Flags&unix.MAP_ANONYMOUS != 0
	kind := a.Flags & unix.MAP_TYPE
	private := kind == unix.MAP_PRIVATE || kind == vma.MapDroppable && anon
	if kinds == 1 && (shared != (kind == unix.MAP_SHARED) || !shared && !private || a.File() && anon) {
		return fmt.Errorf("%s has flags %#x, which contradict its status %#x", a, a.Flags, a.Status)
	}
	return nil
}

// find returns the index of the first area that ends after addr.
func find(areas []*Area, addr uint64) int {
	i, _ := slices.BinarySearchFunc(areas, addr, func(a *Area, addr uint64) int {
		if a.End <= addr {
			return -1
		}
		return 1
	})
	return i
}

// Change leads from the address space a task inherits to its own.
type Change struct {
	Unmap []Range // inherited and not wanted
	Map   []*Area // wanted and not inherited
	Kept  []*Kept // both
}

// Range is a stretch of addresses.
type Range struct{ Start, End uint64 }

// Len is the length in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

// Kept is memory that came by fork. Its pages are the forker's until something is written.
type Kept struct {
	*Area        // as it is to be
	Had   uint32 // its protection as inherited
}

// Diff finds out how to get from the areas a task inherits to those it is to have. Shared memory is kept whole or mapped
// anew: pieces that came by different open files never become one mapping again.
func Diff(have, want []*Area) *Change {
	c := &Change{}
	for _, a := range want {
		at := a.Start
		for i := find(have, at); i < len(have) && have[i].Start < a.End; i++ {
			h := have[i]
			if !a.inherits(h) || !a.Private() && (h.Start > a.Start || h.End < a.End) {
				continue
			}
			start, end := max(a.Start, h.Start), min(a.End, h.End)
			if start > at {
				c.Map = append(c.Map, a.cut(at, start))
			}
			c.Kept = append(c.Kept, &Kept{a.cut(start, end), h.Prot})
			at = end
		}
		if at < a.End {
			c.Map = append(c.Map, a.cut(at, a.End))
		}
	}
	k := 0
	for _, h := range have {
		at := h.Start
		for ; k < len(c.Kept) && c.Kept[k].End <= h.Start; k++ {
		}
		for j := k; j < len(c.Kept) && c.Kept[j].Start < h.End; j++ {
			if c.Kept[j].Start > at {
				c.unmap(at, c.Kept[j].Start)
			}
			at = c.Kept[j].End
		}
		if at < h.End {
			c.unmap(at, h.End)
		}
	}
	return c
}

// unmap notes a range, in one with the one before where they meet.
func (c *Change) unmap(start, end uint64) {
	if n := len(c.Unmap); n > 0 && c.Unmap[n-1].End == start {
		c.Unmap[n-1].End = end
		return
	}
	c.Unmap = append(c.Unmap, Range{start, end})
}

// minHole is where holes are looked for: above the usual vm.mmap_min_addr.
const minHole = 0x10000

// FindHole finds size bytes that are free in every one of the address spaces and not in taken.
func FindHole(spaces [][]*Area, size uint64, taken ...Range) (uint64, error) {
	all := slices.Clone(taken)
	for _, s := range spaces {
		for _, a := range s {
			r := Range{a.Start, a.End}
			if a.Flags&unix.MAP_GROWSDOWN != 0 {
				r.Start -= min(r.Start, stackGap)
			}
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b Range) int { return int(min(max(int64(a.Start-b.Start), -1), 1)) })
	at := uint64(minHole)
	for _, r := range all {
		if r.Start > at && r.Start-at >= size {
			return at, nil
		}
		at = max(at, r.End)
	}
	if at < TaskSize && TaskSize-at >= size {
		return at, nil
	}
	return 0, fmt.Errorf("the address spaces of the set leave no room of %d KiB that is free in all of them", size>>10)
}

// stackGap keeps the interpreter out of the room below a stack that grows.
const stackGap = 1 << 20

// MarkPages finds out which areas the page map of a task has pages for.
func (l *Layout) MarkPages(src image.Source, pid int) error {
	maps, err := image.ReadPagemap(src, image.TaskPages, uint64(pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer maps.Close()
	known := &Pagemap{PagesID: maps.PagesID}
	for run, err := range maps.Runs() {
		if err != nil {
			return err
		}
		if len(known.Runs) <= maxKnown {
			known.Runs = append(known.Runs, run)
		}
		for i := find(l.Areas, run.Addr); i < len(l.Areas) && l.Areas[i].Start < run.End(); i++ {
			l.Areas[i].HasPages = true
		}
	}
	if len(known.Runs) <= maxKnown {
		l.Pages = known
	}
	return nil
}
