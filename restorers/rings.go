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
// fetches it from who made it. pid is the task as the tool sees it, whose address space is otherwise what it is to be. What
// is made at Late is mapped by a second call, with lv Late.
func (p *FilePlan) EmitRings(lv Level, b *remote.Builder, n *Node, l *Layout, pid int) error {
	var fixed, placed []*Area
	for _, a := range l.Areas {
		if !a.Is(vma.StatusSocket) {
			continue
		}
		f := p.Files[uint32(a.Object)]
		if f == nil || f.At == nil {
			return fmt.Errorf("%s: file %d, whose ring it is, is no descriptor of any task", a, a.Object)
		}
		switch o := f.Object.(type) {
		case *packetSocket:
			if lv != Late {
				fixed = append(fixed, a)
			}
		case *ioURing:
			if o.late() == (lv == Late) {
				placed = append(placed, a)
			}
		default:
			return fmt.Errorf("%s: file %d, whose ring it is, has none", a, a.Object)
		}
	}
	if len(placed) > 0 {
		if err := emitWhereRoomIs(b, pid, placed, func(a *Area) { p.emitRing(b, n, a, 0, 0) }); err != nil {
			return err
		}
	}
	for _, a := range fixed {
		p.emitRing(b, n, a, a.Start, unix.MAP_FIXED_NOREPLACE)
	}
	return nil
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
// neither mapped nor moved to a given one. So everything else that is free is taken for a moment.
func emitWhereRoomIs(b *remote.Builder, pid int, areas []*Area, emit func(*Area)) error {
	maps, err := vma.List(pid)
	if err != nil {
		return err
	}
	var taken, wanted []Range
	for _, m := range maps {
		taken = append(taken, Range{m.Start, m.End})
	}
	for _, a := range areas {
		wanted = append(wanted, Range{a.Start, a.End})
	}
	holes := holesIn(taken, wanted)
	for _, h := range slices.Concat(holes, wanted) {
		reserve := b.CallNumbers(unix.SYS_MMAP, h.Start, h.Len(), unix.PROT_NONE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE, noFile, 0)
		if h.End <= minHole {
			reserve.Discard() // not everybody may map there; nor does the kernel then
		} else {
			reserve.Expect(h.Start)
		}
	}
	release := func(r Range) { b.CallNumbers(unix.SYS_MUNMAP, r.Start, r.Len()).Must().Discard() }
	for i, a := range areas {
		release(wanted[i])
		emit(a)
	}
	for _, h := range holes {
		release(h)
	}
	return nil
}

// holesIn lists what is free of a task's address space and neither taken nor wanted, but for holes that are too small for
// anything wanted and do not touch it. The lowest pages, where not everybody may map, are a hole of their own.
func holesIn(taken, wanted []Range) []Range {
	smallest := uint64(TaskSize)
	touched := map[uint64]bool{}
	for _, w := range wanted {
		smallest = min(smallest, w.Len())
		touched[w.Start], touched[w.End] = true, true
	}
	all := slices.Concat(taken, wanted, []Range{{minHole, minHole}, {TaskSize, TaskSize}})
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var holes []Range
	at := uint64(unix.Getpagesize())
	for _, r := range all {
		if r.Start > TaskSize {
			break
		}
		if r.Start > at && (r.Start-at >= smallest || touched[at] || touched[r.Start]) {
			holes = append(holes, Range{at, r.Start})
		}
		at = max(at, r.End)
	}
	return holes
}
