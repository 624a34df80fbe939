package pagemap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// PageSize is the unit of regions. Every architecture that is supported has it.
const PageSize = 4096

// Category is a set of properties of a page, the PAGE_IS_* of linux/fs.h.
type Category uint64

// The categories.
const (
	WPAllowed Category = 1 << iota // asynchronous write protection can be used on it
	Written                        // written since it was write protected
	File                           // of a file or of shared memory, not the task's own
	Present                        // in memory
	Swapped                        // in swap
	PFNZero                        // the kernel's page of zeros
	Huge                           // part of a huge page
	SoftDirty                      // written since clear_refs
	Guard                          // MADV_GUARD_INSTALL; such a page is Swapped too
)

// Region is a run of pages with equal categories, as far as they were asked for.
type Region struct {
	Start, End uint64 // addresses in bytes
	Categories Category
}

// Len is the length in bytes.
func (r Region) Len() uint64 { return r.End - r.Start }

// Query selects pages and what is told of them, with the meaning the masks have for PAGEMAP_SCAN: a page is
// selected when, after the categories in Inverted are flipped, it has all of Mask and at least one of AnyOf
// (if there are any).
type Query struct {
	Inverted, Mask, AnyOf, Return Category
}

// Own selects the pages that are the task's own and not those of a file, and have a content: it leaves out
// the zero page. Guard pages come along, as they cannot be told from swapped ones, and are marked.
var Own = Query{Inverted: File | PFNZero, Mask: File | PFNZero, AnyOf: Present | Swapped, Return: Guard}

// OwnAnonymous is Own where there can be no pages of files: the kernel need not look at each page's own record, which takes
// it five times as long as the page table.
var OwnAnonymous = Query{Inverted: PFNZero, Mask: PFNZero, AnyOf: Present | Swapped, Return: Guard}

// Guards selects the pages of guard regions. Kernels before 6.15 answer it with nothing.
var Guards = Query{Mask: Guard, Return: Guard}

// Populated selects every page that has a content, be it of a file or not.
var Populated = Query{AnyOf: Present | Swapped, Return: Guard}

// Map is the open /proc/PID/pagemap of a task. It is used by one goroutine at a time.
type Map struct {
	f    *os.File
	scan bool // PAGEMAP_SCAN works
	vec  []pageRegion
	buf  []byte // of the fallback

	pages uint64 // how many pages a call tells of
}

// Bounds of what is asked for in one call: regions of a scan, pages of a read.
const (
	maxRegions = 4096
	maxPages   = 32768
	// scanPages is how many pages a scan tells of at a time, and how long a region can be: 64 MiB, so that who moves them
	// need not wait until all of a large mapping has been looked at.
	scanPages = 16384
)

// Open opens the page map of task pid.
func Open(pid int) (*Map, error) {
	f, err := procfs.OpenFile(pid, "pagemap")
	if err != nil {
		return nil, fmt.Errorf("page map of task %d: %w", pid, err)
	}
	return &Map{f: f, scan: probe().scan, pages: scanPages}, nil
}

// Close closes it.
func (m *Map) Close() error {
	if len(m.vec) == maxRegions {
		vectors.Put((*[maxRegions]pageRegion)(m.vec))
		m.vec = nil
	}
	return m.f.Close()
}

// vectors are those not in use: 96 KiB, and a tree has many tasks.
var vectors = sync.Pool{New: func() any { return new([maxRegions]pageRegion) }}

// Scan calls yield for each region in [start, end) that q selects, in the order of addresses. Two that touch have other
// categories, unless they are pieces of a very long one; guard regions are whole. It ends at the first error of yield.
func (m *Map) Scan(start, end uint64, q Query, yield func(Region) error) error {
	joined := joiner{yield: yield}
	var err error
	if m.scan {
		err = m.scanIoctl(start, end, q, joined.add)
	} else {
		err = m.scanFile(start, end, q, joined.add)
	}
	if err != nil {
		return err
	}
	return joined.flush()
}

// errFound ends a scan that has found something.
var errFound = errors.New("found")

// Any says whether q selects a page in [start, end) that is in no guard region. It looks no further than the first.
func (m *Map) Any(start, end uint64, q Query) (bool, error) {
	found := func(r Region) error {
		if r.Categories&Guard != 0 {
			return nil
		}
		return errFound
	}
	var err error
	if m.scan {
		m.pages = 1
		err = m.scanIoctl(start, end, q, found)
		m.pages = scanPages
	} else {
		err = m.scanFile(start, end, q, found)
	}
	if err == errFound {
		return true, nil
	}
	return false, err
}

// joiner puts regions together that a call's bounds have cut.
type joiner struct {
	last  Region
	yield func(Region) error
}

func (j *joiner) add(r Region) error {
	long := j.last.Len() >= scanPages*PageSize && r.Categories&Guard == 0
	if j.last.End == r.Start && j.last.Categories == r.Categories && j.last.Len() > 0 && !long {
		j.last.End = r.End
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.last = r
	return nil
}

func (j *joiner) flush() error {
	if j.last.Len() == 0 {
		return nil
	}
	r := j.last
	j.last = Region{}
	return j.yield(r)
}

// pageRegion is struct page_region of linux/fs.h.
type pageRegion struct {
	start, end, categories uint64
}

// scanArg is struct pm_scan_arg of linux/fs.h.
type scanArg struct {
	size, flags, start, end, walkEnd uint64
	vec                              unsafe.Pointer
	vecLen, maxPages                 uint64
	inverted, mask, anyOf, ret       Category
}

const scanIoctlNumber = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

// scanProtect is PM_SCAN_WP_MATCHING: what is found becomes write protected, where WPAllowed.
const scanProtect = 1

func (m *Map) scanIoctl(start, end uint64, q Query, yield func(Region) error) error {
	if !probe().guard {
		if q.Mask&Guard != 0 {
			return nil
		}
		q.Return &^= Guard
	}
	return m.scanRange(start, end, q, 0, yield)
}

// Protect write protects the pages in [start, end) that q selects and that are not protected yet, in mappings where that is
// allowed (WPAllowed): they are not Written from now on. It needs PAGEMAP_SCAN.
func (m *Map) Protect(start, end uint64, q Query) error {
	// Without asking for Present and Swapped as q has to the kernel would protect holes as well, by filling page tables
	// with marks.
	q.Mask |= Written
	q.Return = 0
	if probe().guard {
		q.Inverted |= Guard
		q.Mask |= Guard
	}
	return m.scanRange(start, end, q, scanProtect, func(Region) error { return nil })
}

// scanRange calls PAGEMAP_SCAN as often as it takes.
func (m *Map) scanRange(start, end uint64, q Query, flags uint64, yield func(Region) error) error {
	if m.vec == nil {
		m.vec = vectors.Get().(*[maxRegions]pageRegion)[:]
	}
	for start < end {
		n, walked, err := scanCall(int(m.f.Fd()), start, end, q, flags, m.pages, m.vec)
		if err != nil {
			return fmt.Errorf("%s at %x: %w", m.f.Name(), start, err)
		}
		// A call that found more than its kernel-side buffer of 512 regions may report an end before its last
		// regions (Linux 6.7 to 6.18): what they cover is not asked for again.
		if n > 0 {
			walked = max(walked, m.vec[n-1].end)
		}
		for _, r := range m.vec[:n] {
			if err := yield(Region{r.start, r.end, Category(r.categories)}); err != nil {
				return err
			}
		}
		if walked <= start {
			return fmt.Errorf("%s: PAGEMAP_SCAN does not get past %x", m.f.Name(), start)
		}
		start = walked
	}
	return nil
}

// scanCall is one PAGEMAP_SCAN: how many regions it found, with no more than so many pages, and how far it came.
func scanCall(fd int, start, end uint64, q Query, flags, pages uint64, vec []pageRegion) (n int, walked uint64, err error) {
	for {
		arg := scanArg{flags: flags, start: start, end: end, vec: unsafe.Pointer(&vec[0]), vecLen: uint64(len(vec)), maxPages: pages,
			inverted: q.Inverted, mask: q.Mask, anyOf: q.AnyOf, ret: q.Return}
		if arg.ret == 0 {
			arg.ret = Present // the kernel wants regions to say something
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), scanIoctlNumber, uintptr(unsafe.Pointer(&arg)))
		if errors.Is(errno, unix.EINTR) {
			continue
		}
		if errno != 0 {
			return 0, 0, os.NewSyscallError("PAGEMAP_SCAN", errno)
		}
		if q.Return == 0 {
			for i := range vec[:r] {
				vec[i].categories = 0
			}
		}
		return int(r), arg.walkEnd, nil
	}
}
