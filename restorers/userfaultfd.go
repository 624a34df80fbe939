package restorers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cryo/internal/image"
	"cryo/internal/image/userfaultfd"
	"cryo/internal/remote"
	"cryo/internal/uffd"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// Userfaultfd restores descriptors of userfaultfd(2) (Linux 4.3). One is made by the task whose memory it watches, and given
// to those that have it. What it watches is registered at the very end, when nobody but the tasks themselves touches their
// memory any more.
type Userfaultfd struct{}

type userfault struct {
	*userfaultfd.UserfaultfdEntry
	home *Table
	file *File
	fd   uffd.FD // the tool's own, between Fill and the end
}

// Plan checks what it is to watch.
func (Userfaultfd) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	u := &userfault{UserfaultfdEntry: p.Set.Userfaults[e.GetId()], fd: -1}
	if u.UserfaultfdEntry == nil {
		return nil, image.Errorf(image.Userfaultfd.File(0), -1, "id %d is not there", e.GetId())
	}
	n := p.Tree.ByPID[int(u.GetPid())]
	if n == nil || n.Helper() || n.Dead() {
		return nil, image.Errorf(image.Userfaultfd.File(0), -1, "id %d: pid %d is no task of the set", u.GetId(), u.GetPid())
	}
	u.home = p.plan.ByNode[n]
	if u.home.Node != n {
		return nil, fmt.Errorf("a userfaultfd for the memory of %s, which shares its descriptors with %s: not built yet", n, u.home.Node)
	}
	if u.GetFlags()&^(unix.O_NONBLOCK|uffd.UserModeOnly) != 0 {
		return nil, image.Errorf(image.Userfaultfd.File(0), -1, "id %d: flags %#x are not known", u.GetId(), u.GetFlags())
	}
	for i, r := range u.GetRanges() {
		if err := checkWatched(r); err != nil {
			return nil, image.Errorf(image.Userfaultfd.File(0), -1, "id %d: ranges[%d]: %w", u.GetId(), i, err)
		}
	}
	p.plan.userfaults = append(p.plan.userfaults, u)
	p.plan.after(Fill, u)
	return u, nil
}

// checkWatched checks a range.
func checkWatched(r *userfaultfd.UserfaultfdRange) error {
	const page, modes = image.PageSize - 1, uffd.Missing | uffd.WriteProtect | uffd.Minor
	if (r.GetStart()|r.GetEnd())&page != 0 || r.GetStart() >= r.GetEnd() || r.GetEnd() > TaskSize {
		return fmt.Errorf("%x-%x is no range of pages", r.GetStart(), r.GetEnd())
	}
	if mode := uint64(r.GetMode()); mode == 0 || mode&^modes != 0 {
		return fmt.Errorf("mode %#x is not known", mode)
	}
	for _, p := range slices.Concat(r.GetWriteProtected(), r.GetMapped()) {
		n := p.GetNrPages()
		if p.GetVaddr()&page != 0 || p.GetVaddr() < r.GetStart() || p.GetVaddr() >= r.GetEnd() || n == 0 || n > (r.GetEnd()-p.GetVaddr())/image.PageSize {
			return fmt.Errorf("%d pages at %x are not in %x-%x", n, p.GetVaddr(), r.GetStart(), r.GetEnd())
		}
	}
	return nil
}

// Home is the table of the task whose memory it is.
func (u *userfault) Home() *Table { return u.home }

// Needs is nothing.
func (u *userfault) Needs() []uint32 { return nil }

// Parks is one descriptor, where only others are to have it.
func (u *userfault) Parks(*Table) int { return 1 }

// Emit makes the descriptor.
func (u *userfault) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	u.file = s.plan.Files[u.GetId()]
	cloexec := s.Cloexec(u.GetId())
	s.Made(b.Call(unix.SYS_USERFAULTFD, remote.Imm(int(u.GetFlags())|cloexec)), u.GetId(), cloexec)
	return nil
}

// fill takes a duplicate and shakes hands.
func (u *userfault) fill(_ context.Context, open func(*Table, int) (int, error)) error {
	fd, err := open(u.file.At, u.file.FD)
	if err != nil {
		return err
	}
	u.fd = uffd.FD(fd)
	if err := u.fd.API(u.GetFeatures()); err != nil {
		return fmt.Errorf("userfaultfd with features %#x: %w", u.GetFeatures(), err)
	}
	return nil
}

// EmitUnmapped takes pages of shared memory out of a task's page table whose faults are watched. The content stays.
func (p *FilePlan) EmitUnmapped(b *remote.Builder, n *Node) {
	for _, u := range p.userfaults {
		for _, r := range u.GetRanges() {
			if u.home.Node != n || uint64(r.GetMode())&uffd.Minor == 0 {
				continue
			}
			b.CallNumbers(unix.SYS_MADVISE, r.GetStart(), r.GetEnd()-r.GetStart(), unix.MADV_DONTNEED).Must().Discard()
		}
	}
}

// WatchMemory registers what userfaultfds are to watch, and gives the tool's duplicates back.
func (p *FilePlan) WatchMemory() error {
	for _, u := range p.userfaults {
		if err := u.watch(); err != nil {
			return fmt.Errorf("%s: %w", u.home.Node, err)
		}
	}
	return p.CloseUserfaults()
}

// CloseUserfaults gives the tool's duplicates of userfaultfds back; a second time does no harm.
func (p *FilePlan) CloseUserfaults() error {
	var errs []error
	for _, u := range p.userfaults {
		if u.fd >= 0 {
			errs = append(errs, u.fd.Close())
			u.fd = -1
		}
	}
	return errors.Join(errs...)
}

func (u *userfault) watch() error {
	for _, r := range u.GetRanges() {
		if _, err := u.fd.Register(r.GetStart(), r.GetEnd()-r.GetStart(), uint64(r.GetMode())); err != nil {
			return fmt.Errorf("watch memory %x-%x by a userfaultfd: %w", r.GetStart(), r.GetEnd(), err)
		}
		for _, pages := range r.GetMapped() {
			if err := u.fd.Continue(pages.GetVaddr(), pages.GetNrPages()*image.PageSize); err != nil {
				return fmt.Errorf("map %d pages at %x that a userfaultfd watches: %w", pages.GetNrPages(), pages.GetVaddr(), err)
			}
		}
		for _, pages := range r.GetWriteProtected() {
			if err := u.fd.Protect(pages.GetVaddr(), pages.GetNrPages()*image.PageSize, true); err != nil {
				return fmt.Errorf("write protect %d pages at %x by a userfaultfd: %w", pages.GetNrPages(), pages.GetVaddr(), err)
			}
		}
	}
	return nil
}

// readUserfaults reads what the set's userfaultfds watch, and marks the memory: it is to have exactly the pages it had.
func (s *Set) readUserfaults() error {
	entries, err := image.ReadOptional(s.Source, image.Userfaultfd, 0)
	if err != nil {
		return err
	}
	s.Userfaults = make(map[uint32]*userfaultfd.UserfaultfdEntry, len(entries))
	for i, e := range entries {
		if s.Files[e.GetId()].GetType() != image.TypeUserfaultfd || s.Userfaults[e.GetId()] != nil {
			return image.Errorf(image.Userfaultfd.File(0), i, "id %d is there twice, or no userfaultfd of the set", e.GetId())
		}
		s.Userfaults[e.GetId()] = e
		t := s.ByPID[int(e.GetPid())]
		if t == nil || t.Layout == nil {
			continue // refused when it is planned
		}
		for _, r := range e.GetRanges() {
			for j := find(t.Layout.Areas, r.GetStart()); j < len(t.Layout.Areas) && t.Layout.Areas[j].Start < r.GetEnd(); j++ {
				t.Layout.Areas[j].Watched = true
			}
		}
	}
	return nil
}
