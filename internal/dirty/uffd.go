package dirty

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"cryo/internal/pagemap"

	"golang.org/x/sys/unix"
)

// Constants of linux/userfaultfd.h.
const (
	uffdAPI               = 0xaa
	uffdFeatureWPUnpop    = 1 << 13 // without it anonymous memory takes no asynchronous protection
	uffdFeatureWPAsync    = 1 << 15
	uffdFeatureWPHugetlb  = 1 << 12 // and shared memory
	uffdioAPI             = 0xc018aa3f
	uffdioRegister        = 0xc020aa00
	uffdioWriteProtect    = 0xc018aa06
	uffdModeWP            = 1 << 1
	uffdUserModeOnly      = 1
	uffdFeatures          = uffdFeatureWPAsync | uffdFeatureWPUnpop | uffdFeatureWPHugetlb
	uffdWriteProtectClear = 0
)

// UffdFlags are the flags with which a task makes the userfaultfd: any user may, and nobody waits on it.
const UffdFlags = unix.O_CLOEXEC | unix.O_NONBLOCK | uffdUserModeOnly

// uffd is a userfaultfd of another address space.
type uffd struct{ fd int }

// handshake is to be made once, before all else.
func (u uffd) handshake() error {
	api := [3]uint64{uffdAPI, uffdFeatures}
	return u.ioctl("UFFDIO_API", uffdioAPI, unsafe.Pointer(&api))
}

// register takes [start, end) under its protection. What it has already stays as it is.
func (u uffd) register(start, end uint64) error {
	arg := [4]uint64{start, end - start, uffdModeWP}
	return u.ioctl("UFFDIO_REGISTER", uffdioRegister, unsafe.Pointer(&arg))
}

// clear takes the protection off the pages in [start, end).
func (u uffd) clear(start, end uint64) error {
	arg := [3]uint64{start, end - start, uffdWriteProtectClear}
	for {
		err := u.ioctl("UFFDIO_WRITEPROTECT", uffdioWriteProtect, unsafe.Pointer(&arg))
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
}

func (u uffd) ioctl(name string, nr uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), nr, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return os.NewSyscallError(name, errno)
	}
}

// Span is a range of addresses of whole mappings.
type Span struct {
	Start, End uint64
	File       bool // there may be pages of a file
}

// own selects the pages of a span that are the task's own.
func (s Span) own() pagemap.Query {
	if s.File {
		return pagemap.Own
	}
	return pagemap.OwnAnonymous // takes the kernel a tenth of the time
}

// protect begins a new period for spans, which ascend: what is the task's own in them is not written from now on. stale
// are parts of them that are not registered yet and have protected pages nevertheless: kernels before 6.14 leave the bits
// when mremap moves a mapping. Mappings that cannot be registered are left out; they will not be Allowed. Those of another
// userfaultfd are returned.
func (u uffd) protect(pm *pagemap.Map, spans, stale []Span) (busy []Span, err error) {
	taken, busy, err := u.registerAll(spans)
	if err != nil {
		return nil, err
	}
	for _, s := range stale {
		if slices.Contains(busy, s) {
			continue // the marks are that one's
		}
		if err := u.clear(s.Start, s.End); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("take write protection off %x-%x: %w", s.Start, s.End, err)
		}
	}
	for _, s := range taken {
		if err := pm.Protect(s.Start, s.End, s.own()); err != nil {
			return nil, err
		}
	}
	return busy, nil
}

// registerAll registers spans, one call for those that follow each other directly, and returns ranges that hold those
// that were taken and no mapping that may belong to somebody else's userfaultfd; busy are those that do.
func (u uffd) registerAll(spans []Span) (taken, busy []Span, err error) {
	add := func(s Span) {
		if n := len(taken); n > 0 && taken[n-1].End == s.Start && taken[n-1].File == s.File {
			taken[n-1].End = s.End
			return
		}
		taken = append(taken, s)
	}
	for len(spans) > 0 {
		n, run := 1, spans[0]
		for n < len(spans) && spans[n].Start == run.End && spans[n].File == run.File {
			run.End = spans[n].End
			n++
		}
		switch err := u.register(run.Start, run.End); {
		case err == nil:
			add(run)
		case errors.Is(err, unix.ESRCH):
			return nil, nil, ErrGone
		default:
			for _, s := range spans[:n] {
				if n > 1 {
					err = u.register(s.Start, s.End)
				}
				if err == nil {
					add(s)
				} else if errors.Is(err, unix.EBUSY) {
					busy = append(busy, s)
				}
			}
		}
		spans = spans[n:]
	}
	return taken, busy, nil
}

// ErrGone says that the address space of a userfaultfd is no more: its task has called exec, or ended.
var ErrGone = errors.New("the address space has gone")
