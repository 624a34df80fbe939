package restorers

import (
	"cmp"
	"fmt"
	"slices"

	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// EmitRings maps the memory that descriptors have: rings of packet sockets (packet(7), mmap) and of io_uring(7). All tasks
// have their descriptors, and what was not at its final place has been closed: so the task maps what it has itself, or
// fetches it from who made it. pid is the task as the tool sees it, whose address space is otherwise what it is to be.
func (p *FilePlan) EmitRings(b *remote.Builder, n *Node, l *Layout, pid int) error {
	var free []*Area
	for _, a := range l.Areas {
		if !a.Is(vma.StatusSocket) {
			continue
		}
		f := p.Files[uint32(a.Object)]
		if f == nil || f.At == nil {
			return fmt.Errorf("%s: file %d, whose ring it is, is no descriptor of any task", a, a.Object)
		}
		switch f.Object.(type) {
		case *packetSocket:
			p.emitRing(b, n, a, a.Start, unix.MAP_FIXED_NOREPLACE)
		case *ioURing:
			free = append(free, a)
		default:
			return fmt.Errorf("%s: file %d, whose ring it is, has none", a, a.Object)
		}
	}
	if len(free) == 0 {
		return nil
	}
	return p.emitWhereRoomIs(b, n, l, pid, free)
}

// emitRing maps the memory of a descriptor at an address, or where the kernel puts it, which has to be the same.
func (p *FilePlan) emitRing(b *remote.Builder, n *Node, a *Area, at uint64, flags uint32) {
	f := p.Files[uint32(a.Object)]
	fd, fetched := remote.Arg(remote.Imm(p.ByNode[n].first(f.ID))), []remote.Op(nil)
	if p.ByNode[n].first(f.ID) < 0 {
		task := b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(f.At.Node.ID), remote.Imm(0)).Must()
		own := b.Call(unix.SYS_PIDFD_GETFD, task, remote.Imm(f.FD), remote.Imm(0)).Must()
		fd, fetched = own, []remote.Op{task, own}
	}
	flags |= a.Flags & unix.MAP_TYPE
	b.Call(unix.SYS_MMAP, remote.Imm(at), remote.Imm(a.Len()), remote.Imm(a.Prot), remote.Imm(flags), fd, remote.Imm(a.Offset)).Expect(a.Start)
	for _, op := range fetched {
		b.Call(unix.SYS_CLOSE, op).Must().Discard()
	}
}

// emitWhereRoomIs maps areas that the kernel lets nobody choose the address of: since Linux 6.4 memory of an io_uring is
// neither mapped nor moved to a given one. So everything else that is free, and large enough, is taken for a moment.
func (p *FilePlan) emitWhereRoomIs(b *remote.Builder, n *Node, l *Layout, pid int, areas []*Area) error {
	maps, err := vma.List(pid)
	if err != nil {
		return err
	}
	var taken []Range
	for _, m := range maps {
		taken = append(taken, Range{m.Start, m.End})
	}
	smallest := areas[0].Len()
	for _, a := range l.Areas {
		taken = append(taken, Range{a.Start, a.End})
	}
	for _, a := range areas {
		smallest = min(smallest, a.Len())
	}
	holes := holesIn(taken, smallest)
	for _, a := range areas {
		holes = append(holes, Range{a.Start, a.End})
	}
	for _, h := range holes {
		reserve := b.CallNumbers(unix.SYS_MMAP, h.Start, h.Len(), unix.PROT_NONE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE, noFile, 0)
		if h.End <= minHole {
			reserve.Discard() // not everybody may map there; nor does the kernel then
		} else {
			reserve.Expect(h.Start)
		}
	}
	release := func(r Range) { b.CallNumbers(unix.SYS_MUNMAP, r.Start, r.Len()).Must().Discard() }
	for _, a := range areas {
		release(Range{a.Start, a.End})
		p.emitRing(b, n, a, 0, 0)
	}
	for _, h := range holes[:len(holes)-len(areas)] {
		release(h)
	}
	return nil
}

// holesIn lists what is free of a task's address space, in pieces of size bytes at least. The lowest pages, where not
// everybody may map, are a piece of their own.
func holesIn(taken []Range, size uint64) []Range {
	slices.SortFunc(taken, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var holes []Range
	at := uint64(unix.Getpagesize())
	hole := func(end uint64) {
		if at < minHole && end > minHole {
			holes = append(holes, Range{at, minHole})
			at = minHole
		}
		if end > at && end-at >= size {
			holes = append(holes, Range{at, end})
		}
	}
	for _, t := range append(taken, Range{TaskSize, TaskSize}) {
		if t.Start > TaskSize {
			break
		}
		hole(min(t.Start, TaskSize))
		at = max(at, t.End)
	}
	return holes
}
