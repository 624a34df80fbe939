package dirty

import (
	"errors"
	"fmt"
	"os"
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

// followed selects pages of mappings that are registered, with us or somebody else. The kernel does not look into others.
var followed = pagemap.Query{Mask: pagemap.WPAllowed, AnyOf: pagemap.Present | pagemap.Swapped}

// take registers spans, without more only those with pages that are registered already, be it with somebody else. Mappings
// that cannot be registered are left out: they will not be Allowed. What is registered and not with us is somebody else's.
func (u uffd) take(pm *pagemap.Map, spans []Span, more bool) (taken Taken, err error) {
	for _, s := range spans {
		known, err := pm.Any(s.Start, s.End, followed)
		if err != nil {
			return taken, err
		}
		if !known && !more {
			continue
		}
		switch err := u.register(s.Start, s.End); {
		case errors.Is(err, unix.ESRCH):
			return taken, ErrGone
		case errors.Is(err, unix.EBUSY) || err != nil && known:
			taken.Theirs = append(taken.Theirs, s)
		case err == nil && !known:
			taken.Fresh = append(taken.Fresh, s)
		}
	}
	return taken, nil
}

// protect begins a new period for spans, which ascend: what is the task's own in them is not written from now on. stale
// have protected pages of a time before they were registered: kernels before 6.14 leave the bits when mremap moves a
// mapping.
func (u uffd) protect(pm *pagemap.Map, spans, stale []Span) error {
	for _, s := range stale {
		if err := u.clear(s.Start, s.End); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("take write protection off %x-%x: %w", s.Start, s.End, err)
		}
	}
	for _, s := range joined(spans) {
		if err := pm.Protect(s.Start, s.End, s.own()); err != nil {
			return err
		}
	}
	return nil
}

// joined puts spans together that follow each other directly.
func joined(spans []Span) (list []Span) {
	for _, s := range spans {
		if n := len(list); n > 0 && list[n-1].End == s.Start && list[n-1].File == s.File {
			list[n-1].End = s.End
			continue
		}
		list = append(list, s)
	}
	return list
}

// ErrGone says that the address space of a userfaultfd is no more: its task has called exec, or ended.
var ErrGone = errors.New("the address space has gone")
