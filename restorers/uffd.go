package restorers

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// Uffd is a userfaultfd of a task (Linux 4.3; usable without privilege 5.11), held by the tool to give the task's fresh
// memory its contents: UFFDIO_COPY allocates a page and copies, where a write first clears it. Nobody touches the memory
// meanwhile, so there are no faults to serve. Closing it leaves ordinary memory.
type Uffd struct {
	InTask int // its number in the task, which closes it when all is filled
	fd     int
	pid    int
	ranges []Range // where Copy may write, ascending
}

// Constants of linux/userfaultfd.h.
const (
	uffdUserModeOnly = 1
	uffdAPI          = 0xaa
	uffdioAPI        = 0xc018aa3f
	uffdioRegister   = 0xc020aa00
	uffdioUnregister = 0x8010aa01
	uffdioCopy       = 0xc028aa03
	uffdModeMissing  = 1
	uffdCopyDontWake = 1
	uffdCopyIoctl    = 3 // _UFFDIO_COPY, a bit of the answer to registering
)

// minCopied is the size in bytes from which on a mapping is worth the calls that prepare it.
const minCopied = 4 << 20

// CopyRanges lists the fresh memory of a space that is filled faster by a Uffd, nil where that is too little to be worth
// it. Where the kernel makes huge pages on writing, it may.
func (s *Space) CopyRanges() []Range {
	var list []Range
	for _, a := range s.Change.Map {
		plain := a.Is(vma.StatusAnonPrivate) && a.Flags&(unix.MAP_HUGETLB|unix.MAP_GROWSDOWN) == 0
		if plain && a.HasPages && a.Len() >= minCopied && !a.huge() {
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
	return b.Call(unix.SYS_USERFAULTFD, remote.Imm(unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly))
}

// OpenUffd takes over the userfaultfd that a task has as fd. Ranges the kernel does not take are left out.
func OpenUffd(pid, fd int, ranges []Range) (*Uffd, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open of task %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("userfaultfd of task %d: %w", pid, err)
	}
	u := &Uffd{InTask: fd, fd: own, pid: pid}
	api := [3]uint64{uffdAPI}
	if err := u.ioctl(uffdioAPI, unsafe.Pointer(&api)); err != nil {
		u.Close()
		return nil, err
	}
	for _, r := range ranges {
		arg := [4]uint64{r.Start, r.Len(), uffdModeMissing}
		err := u.ioctl(uffdioRegister, unsafe.Pointer(&arg))
		if err == nil && arg[3]&(1<<uffdCopyIoctl) != 0 {
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
		arg := [2]uint64{r.Start, r.Len()}
		errs = append(errs, u.ioctl(uffdioUnregister, unsafe.Pointer(&arg)))
	}
	errs = append(errs, unix.Close(u.fd))
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
		arg := struct {
			dst  uint64
			src  unsafe.Pointer
			len  uint64
			mode uint64
			done int64
		}{addr, unsafe.Pointer(&b[0]), uint64(len(b)), uffdCopyDontWake, 0}
		err := u.ioctl(uffdioCopy, unsafe.Pointer(&arg))
		if err != nil && !(errors.Is(err, unix.EAGAIN) && arg.done >= 0) {
			return fmt.Errorf("copy pages to %x of task %d: %w", addr, u.pid, err)
		}
		addr, b = addr+uint64(arg.done), b[arg.done:]
	}
	return nil
}

func (u *Uffd) ioctl(nr uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u.fd), nr, uintptr(arg)); errno != 0 {
		return os.NewSyscallError("ioctl of userfaultfd", errno)
	}
	return nil
}
