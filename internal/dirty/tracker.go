package dirty

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"cryo/internal/pagemap"

	"golang.org/x/sys/unix"
)

// Way is how this kernel tells written pages from others.
type Way int

// The ways.
const (
	None      Way = iota
	SoftDirty     // bits in the page tables
	WriteProtect
)

// Kernel is what this kernel can do, found by doing it.
var Kernel = sync.OnceValue(func() Way {
	switch {
	case hasSoftDirty():
		return SoftDirty
	case pagemap.HasScan() && hasWriteProtect():
		return WriteProtect
	}
	return None
})

// hasSoftDirty looks at a page that was just written: it is dirty where the kernel keeps track at all.
func hasSoftDirty() bool {
	page, err := unix.Mmap(-1, 0, pagemap.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false
	}
	defer unix.Munmap(page)
	page[0] = 1
	pm, err := pagemap.Open(os.Getpid())
	if err != nil {
		return false
	}
	defer pm.Close()
	start, found := uint64(uintptr(unsafe.Pointer(&page[0]))), false
	q := pagemap.Query{AnyOf: pagemap.SoftDirty, Return: pagemap.SoftDirty}
	err = pm.Scan(start, start+pagemap.PageSize, q, func(pagemap.Region) error { found = true; return nil })
	return err == nil && found
}

func hasWriteProtect() bool {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, UffdFlags, 0, 0)
	if errno != 0 {
		return false
	}
	defer unix.Close(int(fd))
	return uffd{int(fd)}.handshake() == nil
}

// Tracker follows one address space.
type Tracker struct {
	pid  int
	soft bool // by soft-dirty bits
	uffd uffd // fd -1: none, or closed
}

// NewSoftDirty returns a tracker by soft-dirty bits. It has nothing to be closed.
func NewSoftDirty(pid int) *Tracker { return &Tracker{pid, true, uffd{-1}} }

// NewWriteProtect takes over a userfaultfd that was just made in task pid.
func NewWriteProtect(pid, fd int) (*Tracker, error) {
	t := &Tracker{pid, false, uffd{fd}}
	if err := t.uffd.handshake(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

// Close gives the userfaultfd back. If nobody else holds it this ends the protection.
func (t *Tracker) Close() {
	if t.uffd.fd >= 0 {
		unix.Close(t.uffd.fd)
		t.uffd.fd = -1
	}
}

// Categories are what a scan has to return for Clean to judge by.
func (t *Tracker) Categories() pagemap.Category {
	if t.soft {
		return pagemap.SoftDirty
	}
	return pagemap.WPAllowed | pagemap.Written | pagemap.Present
}

// Clean says whether pages of these categories have not been written since the last Arm; ofFile says that what shows
// where a page is missing is not zeros. It holds for mappings that Take did not find to be somebody else's.
func (t *Tracker) Clean(c pagemap.Category, ofFile bool) bool {
	if t.soft {
		return c&pagemap.SoftDirty == 0
	}
	return c&(pagemap.WPAllowed|pagemap.Written) == pagemap.WPAllowed && (!ofFile || c&pagemap.Present != 0)
}

// Take sees to it that the mappings in spans, which ascend, are followed, before the task's pages are listed; without more
// only those that are already, which changes nothing but tells whose they are. In mappings that are Theirs or Fresh no page
// is to be taken for clean. The error is ErrGone if the tracker is of an address space that the task has left.
//
// It waits for whoever reads smaps of the task, and who reads smaps waits for it; Arm does without that.
func (t *Tracker) Take(pm *pagemap.Map, spans []Span, more bool) (taken Taken, err error) {
	if t.soft {
		return taken, nil
	}
	return t.uffd.take(pm, spans, more)
}

// Taken is what came of Take, in ascending order.
type Taken struct {
	Theirs []Span // watched by another userfaultfd
	Fresh  []Span // not followed before
}

// Arm begins a new period for the task's mappings, while it stands still: nothing is written from now on. spans are those
// of its mappings that were taken, in ascending order; stale are the fresh ones with pages that seem to be clean.
func (t *Tracker) Arm(pm *pagemap.Map, spans, stale []Span) error {
	if !t.soft {
		return t.uffd.protect(pm, spans, stale)
	}
	name := fmt.Sprintf("/proc/%d/clear_refs", t.pid)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("4")
	return errors.Join(err, f.Close())
}
