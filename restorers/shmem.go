package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// Shmem is one object of shared anonymous memory: what mmap(MAP_SHARED|MAP_ANONYMOUS) made before forks handed it on.
type Shmem struct {
	ID    uint64
	Size  uint64 // in bytes; that of the last view's end if the set does not say another
	told  bool   // the set says it
	Owner *Node  // the first in the tree that has a view; it makes the object
	view  *Area  // one of the owner's views
	whole uint64 // where the owner maps all of it while it is filled
	temp  bool   // that place is not one of its views
	made  bool
}

// maxShmem bounds an object: more than any address space holds.
const maxShmem = TaskSize

// PlanShmem finds the shared anonymous memory of all tasks.
func PlanShmem(t *Tree, layouts map[*Node]*Layout, engine Range) (map[uint64]*Shmem, error) {
	all := map[uint64]*Shmem{}
	var order []*Shmem
	for _, n := range t.Nodes {
		l := layouts[n]
		if l == nil {
			continue
		}
		for _, a := range l.Areas {
			if !a.SharedAnon() {
				continue
			}
			o := all[a.Object]
			if o == nil {
				o = &Shmem{ID: a.Object, Owner: n, view: a}
				all[a.Object] = o
				order = append(order, o)
			}
			if end := a.Offset + a.Len(); end > maxShmem {
				return nil, image.Errorf(image.MM.File(uint64(n.ID)), 0, "%s: offset %#x is past the end of any shared memory", a, a.Offset)
			} else if !o.told {
				o.Size = max(o.Size, end)
			}
			if a.ShmemSize == 0 || o.told {
				continue
			}
			if a.ShmemSize > maxShmem || a.ShmemSize%image.PageSize != 0 {
				return nil, image.Errorf(image.MM.File(uint64(n.ID)), 0, "%s: shared memory of %d bytes cannot be", a, a.ShmemSize)
			}
			o.Size, o.told = a.ShmemSize, true
		}
	}
	taken := map[*Node][]Range{}
	for _, o := range order {
		o.whole = o.view.Start
		if o.view.Offset == 0 && o.view.Len() == o.Size {
			continue
		}
		if o.view.Flags&unix.MAP_HUGETLB != 0 {
			return nil, fmt.Errorf("%s: %s is a part of huge pages shared with others: not built yet", o.Owner, o.view)
		}
		l := layouts[o.Owner]
		at, err := FindHole([][]*Area{l.Areas, l.Special}, o.Size, append(taken[o.Owner], engine)...)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", o.Owner, o.view, err)
		}
		taken[o.Owner] = append(taken[o.Owner], Range{at, at + o.Size})
		o.whole, o.temp = at, true
	}
	return all, nil
}

// EmitView maps a view of the object in its owner, or in a task that can see the owner's through link, a name in
// /proc/PID/map_files.
func (o *Shmem) EmitView(b *remote.Builder, n *Node, a *Area, link string) {
	flags := a.Flags&^(unix.MAP_LOCKED|unix.MAP_POPULATE|unix.MAP_GROWSDOWN) | unix.MAP_FIXED_NOREPLACE
	if n != o.Owner {
		fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(link), remote.Imm(unix.O_RDWR|unix.O_CLOEXEC), remote.Imm(0)).Must()
		b.Call(unix.SYS_MMAP, remote.Imm(a.Start), remote.Imm(a.Len()), remote.Imm(a.Prot), remote.Imm(flags&^unix.MAP_ANONYMOUS), fd,
			remote.Imm(a.Offset)).Expect(a.Start)
		b.Call(unix.SYS_CLOSE, fd).Must().Discard()
		return
	}
	const rw = unix.PROT_READ | unix.PROT_WRITE
	if !o.made {
		o.made = true
		b.Call(unix.SYS_MMAP, remote.Imm(o.whole), remote.Imm(o.Size), remote.Imm(rw), remote.Imm(flags), remote.Imm(-1),
			remote.Imm(0)).Expect(o.whole)
		if !o.temp {
			return
		}
	}
	// With an old size of 0 mremap makes a second mapping of the same pages. The owner's first view may be the whole.
	b.Call(unix.SYS_MREMAP, remote.Imm(o.whole+a.Offset), remote.Imm(0), remote.Imm(a.Len()),
		remote.Imm(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED), remote.Imm(a.Start)).Expect(a.Start)
}

// EmitDone takes the owner's mapping of the whole object away where it was made for filling, and gives its views their
// protection.
func (o *Shmem) EmitDone(b *remote.Builder, l *Layout) {
	if o.temp {
		b.Call(unix.SYS_MUNMAP, remote.Imm(o.whole), remote.Imm(o.Size)).Must()
	}
	for _, a := range l.Areas {
		if a.SharedAnon() && a.Object == o.ID && a.Prot != unix.PROT_READ|unix.PROT_WRITE {
			mprotect(b, a)
		}
	}
}

// Fill is how the object's pages get into its owner's memory.
func (o *Shmem) Fill(src image.Source, pid int) *PageFill {
	return &PageFill{Source: src, Kind: image.ShmemPages, ID: o.ID, PID: pid, Last: true, Parts: []Part{{Range: Range{0, o.Size}, Shift: o.whole}}}
}

// Link is where others find the object when its owner has mapped it. pid is the owner's, as they see it.
func (o *Shmem) Link(pid int) (string, error) {
	maps, err := vma.List(pid)
	if err != nil {
		return "", err
	}
	for _, m := range maps {
		if m.Start <= o.view.Start && o.view.Start < m.End {
			return fmt.Sprintf("/proc/%d/map_files/%s", pid, m.Link()), nil
		}
	}
	return "", fmt.Errorf("the owner of %s, task %d, has it no more", o.view, pid)
}
