package restorers

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"cryo/internal/remote"
	"cryo/internal/uffd"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// Uffd is a userfaultfd of a task (Linux 4.3; usable without privilege 5.11), held by the tool to give the task's fresh
// memory its contents: UFFDIO_COPY allocates a page and copies, where a write first clears it. Nobody touches the memory
// meanwhile, so there are no faults to serve. Closing it leaves ordinary memory.
type Uffd struct {
	InTask int // its number in the task, which closes it when all is filled
	fd     uffd.FD
	pid    int
	ranges []Range // where Copy may write, ascending
}

// minCopied is the size in bytes from which on a mapping is worth the calls that prepare it.
const minCopied = 4 << 20

// CopyRanges lists the fresh memory of a space that is filled faster by a Uffd, nil where that is too little to be worth
// it. Where the kernel makes huge pages on writing, it may, but not of memory that is watched. onlyWatched lists
// nothing else.
func (s *Space) CopyRanges(onlyWatched bool) []Range {
	var list []Range
	for _, a := range s.Change.Map {
		plain := a.Is(vma.StatusAnonPrivate) && a.Flags&(unix.MAP_HUGETLB|unix.MAP_GROWSDOWN) == 0
		if plain && a.HasPages && (a.Watched || !onlyWatched && a.Len() >= minCopied && !a.huge()) {
			list = append(list, Range{a.Start, a.End})
		}
	}
	return list
}

// huge says whether the kernel would make huge pages of the area when it is written.
func (a *Area) huge() bool {
	const yes, no = 1 << unix.MADV_HUGEPAGE, 1 << unix.MADV_NOHUGEPAGE
	return a.Madvise&yes != 0 || hugeAlways() && a.Madvise&no == 0
}

// hugeAlways says whether huge pages are made without being asked for.
func hugeAlways() bool {
	b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	return err == nil && strings.Contains(string(b), "[always]")
}

// EmitUffd makes a userfaultfd in the task. Its descriptor, or an error number, is the operation's result.
func EmitUffd(b *remote.Builder) remote.Op {
	return b.Call(unix.SYS_USERFAULTFD, remote.Imm(unix.O_CLOEXEC|unix.O_NONBLOCK|uffd.UserModeOnly))
}

// OpenUffd takes over the userfaultfd that a task has as fd. Ranges the kernel does not take are left out.
func OpenUffd(pid, fd int, ranges []Range) (*Uffd, error) {
	own, err := uffd.FromTask(pid, fd)
	if err != nil {
		return nil, err
	}
	u := &Uffd{InTask: fd, fd: own, pid: pid}
	if err := own.API(0); err != nil {
		u.Close()
		return nil, err
	}
	for _, r := range ranges {
		if can, err := own.Register(r.Start, r.Len(), uffd.Missing); err == nil && can&uffd.CanCopy != 0 {
			u.ranges = append(u.ranges, r)
		}
	}
	return u, nil
}

// Close ends it; the memory is ordinary again, also while the task has its own descriptor open. nil and a second time do
// no harm.
func (u *Uffd) Close() error {
	if u == nil || u.fd < 0 {
		return nil
	}
	var errs []error
	for _, r := range u.ranges {
		errs = append(errs, u.fd.Unregister(r.Start, r.Len()))
	}
	errs = append(errs, u.fd.Close())
	u.fd = -1
	return errors.Join(errs...)
}

// UseUffd fills what u is registered for by copying; nil is none.
func (f *PageFill) UseUffd(u *Uffd) {
	if u == nil {
		return
	}
	f.Uffd = u
	for i := range f.Parts {
		p := &f.Parts[i]
		p.Copied = !p.Kept && slices.ContainsFunc(u.ranges, func(r Range) bool { return r.Start <= p.Start && p.End <= r.End })
	}
}

// Copy fills fresh pages at addr.
func (u *Uffd) Copy(addr uint64, b []byte) error {
	for len(b) > 0 {
		n, err := u.fd.Copy(addr, b, true)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("copy pages to %x of task %d: %w", addr, u.pid, err)
		}
		addr, b = addr+uint64(n), b[n:]
	}
	return nil
}
