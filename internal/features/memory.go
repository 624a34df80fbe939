package features

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"cryo/internal/options"
	"cryo/internal/pagemap"
	"cryo/internal/procfs"
	"cryo/internal/uffd"

	"golang.org/x/sys/unix"
)

// What helps to read, track and rebuild memory.
var (
	PagemapScan = define("pagemap_scan", Extra, "6.7", "find pages by what is true of them",
		func() error { return yes(pagemap.HasScan()) })
	GuardScan = define("pagemap_scan_guard_pages", Extra, "6.15", "find guard pages",
		func() error { return yes(pagemap.HasGuard()) })
	ProcmapQuery = define("procmap_query", ByName, "6.11", "list mappings without text", probeProcmapQuery)
	SoftDirty    = define("soft_dirty", ByName, "3.11", "know which pages were written since", probeSoftDirty)
	WPAsync      = define("uffd_wp_async", ByName, "6.7", "know which pages were written since, by write protection",
		func() error { return probeUffd(uffd.WPAsync) })
	DirtyTrack  = define("mem_dirty_track", Extra, "3.11", "incremental dumps", probeDirtyTrack).usedBy(options.Incremental)
	Uffd        = define("uffd", Extra, "4.3", "serve page faults", func() error { return probeUffd(0) }).usedBy(options.Lazy)
	UffdNonCoop = define("uffd-noncoop", Extra, "4.11", "serve page faults of tasks that know nothing of it",
		func() error { return probeUffd(uffd.NonCooperative) }).usedBy(options.Lazy)
	AioRemap     = define("aio_remap", Extra, "3.19", "move the ring of asynchronous I/O", probeAioRemap)
	MemfdHugetlb = define("memfd_hugetlb", Extra, "4.16", "huge pages in a memfd", func() error { return probeMemfd(unix.MFD_HUGETLB) })
	MemfdExec    = define("memfd_exec", ByName, "3.17", "run a program from memory", probeMemfdExec)
)

func yes(ok bool) error {
	if !ok {
		return errMissing
	}
	return nil
}

// contains looks for text in a file of /proc.
func contains(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(text)) {
		return fmt.Errorf("%s has no %q", path, text)
	}
	return nil
}

// procmapQuery is struct procmap_query.
type procmapQuery struct {
	size, flags, addr, start, end, vmaFlags, pageSize, offset, inode uint64
	devMajor, devMinor, nameSize, buildIDSize                        uint32
	name, buildID                                                    uint64
}

const procmapQueryIoctl = 0xc0686611 // _IOWR('f', 17, struct procmap_query)

func probeProcmapQuery() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	q := procmapQuery{addr: uint64(uintptr(unsafe.Pointer(&errMissing)))}
	q.size = uint64(unsafe.Sizeof(q))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), procmapQueryIoctl, uintptr(unsafe.Pointer(&q)))
	if errno != 0 {
		return os.NewSyscallError("ioctl(PROCMAP_QUERY)", errno)
	}
	if q.addr < q.start || q.addr >= q.end {
		return fmt.Errorf("PROCMAP_QUERY finds %#x to %#x for %#x", q.start, q.end, q.addr)
	}
	return nil
}

// probeSoftDirty looks at a page that was just written: it is dirty where the kernel keeps track at all.
func probeSoftDirty() error {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(page)
	page[0] = 1
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	var entry [8]byte
	at := int64(uintptr(unsafe.Pointer(&page[0]))) / int64(os.Getpagesize()) * int64(len(entry))
	if _, err := f.ReadAt(entry[:], at); err != nil {
		return err
	}
	const softDirty = 1 << 55
	return yes(binary.NativeEndian.Uint64(entry[:])&softDirty != 0)
}

// probeDirtyTrack is satisfied by either way.
func probeDirtyTrack() error {
	if SoftDirty.Available() || WPAsync.Available() && PagemapScan.Available() {
		return nil
	}
	return errors.New("the kernel has neither soft-dirty bits nor asynchronous write protection")
}

// probeUffd shakes hands for features.
func probeUffd(features uint64) error {
	fd, err := uffd.Open(0, features)
	if err != nil {
		return err
	}
	return fd.Close()
}

func probeMemfd(flags int) error {
	fd, err := unix.MemfdCreate("criu-probe", flags|unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	return unix.Close(fd)
}

// probeMemfdExec: the sysctl vm.memfd_noexec forbids it since Linux 6.3; before, every memfd may be run.
func probeMemfdExec() error {
	err := probeMemfd(unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		return probeMemfd(0)
	}
	return err
}

// probeAioRemap makes a ring, moves it and asks it for events.
func probeAioRemap() error {
	var ring uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 16, uintptr(unsafe.Pointer(&ring)), 0); errno != 0 {
		return os.NewSyscallError("io_setup", errno)
	}
	defer func() { unix.Syscall(unix.SYS_IO_DESTROY, ring, 0, 0) }()
	length, err := mappingLength(ring)
	if err != nil {
		return err
	}
	place, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, length, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON, ^uintptr(0), 0)
	if errno != 0 {
		return os.NewSyscallError("mmap", errno)
	}
	moved, _, errno := unix.Syscall6(unix.SYS_MREMAP, ring, length, length, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, place, 0)
	if errno != 0 {
		unix.Syscall(unix.SYS_MUNMAP, place, length, 0)
		return os.NewSyscallError("mremap", errno)
	}
	ring = moved
	_, _, errno = unix.Syscall6(unix.SYS_IO_GETEVENTS, ring, 0, 1, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("the moved ring does not work: %w", errno)
	}
	return nil
}

// mappingLength is the length of our mapping at an address.
func mappingLength(start uintptr) (uintptr, error) {
	self, err := procfs.OpenTask(os.Getpid())
	if err != nil {
		return 0, err
	}
	defer self.Close()
	maps, err := self.Maps()
	if err != nil {
		return 0, err
	}
	for _, m := range maps {
		if m.Start == uint64(start) {
			return uintptr(m.End - m.Start), nil
		}
	}
	return 0, fmt.Errorf("no mapping begins at %#x", start)
}
