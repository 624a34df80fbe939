package vma

import (
	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The bits of vma_entry.status, part of the image format.
const (
	StatusRegular     = 1 << 0 // has a content or a file, in contrast to what the kernel gives every task
	StatusVsyscall    = 1 << 2
	StatusVDSO        = 1 << 3
	StatusHeap        = 1 << 5
	StatusFilePrivate = 1 << 6
	StatusFileShared  = 1 << 7
	StatusAnonShared  = 1 << 8
	StatusAnonPrivate = 1 << 9
	StatusSysV        = 1 << 10
	StatusSocket      = 1 << 11 // rings of a socket, or of an io_uring, which criu does not know
	StatusVVAR        = 1 << 12
	StatusAIORing     = 1 << 13
	StatusMemfd       = 1 << 14
	StatusShadowStack = 1 << 15
	StatusGuard       = 1 << 16 // no mapping: a range with MADV_GUARD_INSTALL
	StatusUprobes     = 1 << 17
)

// MapDroppable is MAP_DROPPABLE (Linux 6.11), in place of MAP_PRIVATE: pages the kernel may take away at any time.
const MapDroppable = 0x8

// mmapFlags and madvices translate VmFlags into what mmap and madvise were told.
var mmapFlags = []struct {
	flag Flags
	mmap uint32
}{
	{GrowsDown, unix.MAP_GROWSDOWN}, {Locked, unix.MAP_LOCKED}, {NoReserve, unix.MAP_NORESERVE},
	{Hugetlb, unix.MAP_HUGETLB}, {Droppable, MapDroppable},
}

var madvices = []struct {
	flag   Flags
	advice int
}{
	{Sequential, unix.MADV_SEQUENTIAL}, {Random, unix.MADV_RANDOM}, {DontFork, unix.MADV_DONTFORK},
	{DontDump, unix.MADV_DONTDUMP}, {Mergeable, unix.MADV_MERGEABLE}, {HugePage, unix.MADV_HUGEPAGE},
	{NoHugePage, unix.MADV_NOHUGEPAGE}, {WipeOnFork, unix.MADV_WIPEONFORK},
}

// Entry is the mapping as criu's image has it. The caller fills in what the mapping does not know: shmid
// for mappings of files and memfds (the id of the file in files.img), fdflags.
func (m *Mapping) Entry(fl Flags) *vmapb.VmaEntry {
	e := &vmapb.VmaEntry{
		Start: &m.Start, End: &m.End, Pgoff: &m.Offset, Shmid: proto.Uint64(0), Prot: &m.Prot,
		Flags: proto.Uint32(unix.MAP_PRIVATE), Status: proto.Uint32(m.status()), Fd: proto.Int64(-1),
	}
	if m.Shared {
		*e.Flags = unix.MAP_SHARED
	}
	if *e.Status&(StatusAnonPrivate|StatusAnonShared) != 0 {
		*e.Flags |= unix.MAP_ANONYMOUS
	}
	if *e.Status&StatusAnonShared != 0 {
		*e.Shmid = m.Inode
	}
	if size := m.HugePage(); size != 0 {
		*e.Flags |= MapHuge(size)
	}
	ApplyFlags(e, fl)
	return e
}

func (m *Mapping) status() uint32 {
	backing := uint32(StatusFilePrivate)
	if m.Shared {
		backing = StatusFileShared
	}
	switch m.Kind() {
	case Anonymous:
		if m.Heap() {
			return StatusRegular | StatusAnonPrivate | StatusHeap
		}
		return StatusRegular | StatusAnonPrivate
	case SharedAnonymous:
		return StatusRegular | StatusAnonShared
	case SysV:
		return StatusRegular | StatusAnonShared | StatusSysV
	case Memfd:
		return StatusRegular | StatusMemfd | backing
	case AIORing:
		return StatusAIORing
	case Vsyscall:
		return StatusVsyscall | StatusAnonPrivate
	case Uprobes:
		return StatusUprobes
	case VDSO:
		// One that the task has made unreadable is no vdso to anybody who looks for its symbols.
		if m.Prot&(unix.PROT_READ|unix.PROT_EXEC) == unix.PROT_READ|unix.PROT_EXEC {
			return StatusRegular | StatusAnonPrivate | StatusVDSO
		}
		return StatusRegular | StatusAnonPrivate
	case VVAR:
		if m.Prot&unix.PROT_READ != 0 {
			return StatusRegular | StatusAnonPrivate | StatusVVAR
		}
		return StatusRegular | StatusAnonPrivate
	}
	return StatusRegular | backing
}

// ApplyFlags adds what VmFlags say to an entry that was made without them.
func ApplyFlags(e *vmapb.VmaEntry, fl Flags) {
	for _, f := range mmapFlags {
		if fl&f.flag != 0 {
			*e.Flags |= f.mmap
		}
	}
	if fl&Droppable != 0 {
		*e.Flags &^= unix.MAP_PRIVATE // the type bits of mmap: private and droppable exclude each other
	}
	var madv uint64
	for _, a := range madvices {
		if fl&a.flag != 0 {
			madv |= 1 << a.advice
		}
	}
	if madv != 0 {
		e.Madv = &madv
	}
	if fl&ShadowStack != 0 {
		*e.Status |= StatusShadowStack
	}
}

// MapsMemfd makes an entry of shared anonymous memory one of the memory file with this id in files.img.
func MapsMemfd(e *vmapb.VmaEntry, file uint32) {
	*e.Status = *e.Status&^StatusAnonShared | StatusMemfd | StatusFileShared
	*e.Flags &^= unix.MAP_ANONYMOUS
	*e.Shmid = uint64(file)
}

// GuardEntry is the pseudo entry of a range with MADV_GUARD_INSTALL. Such entries follow all others.
func GuardEntry(start, end uint64) *vmapb.VmaEntry {
	return &vmapb.VmaEntry{
		Start: &start, End: &end, Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0), Prot: proto.Uint32(0),
		Flags: proto.Uint32(0), Status: proto.Uint32(StatusGuard), Fd: proto.Int64(-1),
	}
}

// Is says whether the entry has all the given status bits.
func Is(e *vmapb.VmaEntry, status uint32) bool { return e.GetStatus()&status == status }

// Private says whether the pages of the entry are the task's own, stored in pagemap-PID.img.
func Private(e *vmapb.VmaEntry) bool {
	return Is(e, StatusRegular) && e.GetStatus()&(StatusAnonPrivate|StatusFilePrivate) != 0 ||
		e.GetStatus()&(StatusShadowStack|StatusAIORing) != 0
}

// CanBeLazy says whether the pages of the entry may be brought in after the task runs again: userfaultfd
// serves private anonymous memory that is not locked.
func CanBeLazy(e *vmapb.VmaEntry) bool {
	const need, never = unix.MAP_ANONYMOUS | unix.MAP_PRIVATE, unix.MAP_LOCKED | unix.MAP_HUGETLB
	return e.GetFlags()&need == need && e.GetFlags()&never == 0 &&
		e.GetStatus()&(StatusVDSO|StatusVVAR|StatusVsyscall) == 0
}

// Advices lists what madvise has to be told (MADV_*) for the entry to be as it was.
func Advices(e *vmapb.VmaEntry) []int {
	var list []int
	for _, a := range madvices {
		if e.GetMadv()&(1<<a.advice) != 0 {
			list = append(list, a.advice)
		}
	}
	return list
}

// MapsObject makes the entry one of the memory that a descriptor's object has, whose file has this id: rings of a packet
// socket or of an io_uring.
func MapsObject(e *vmapb.VmaEntry, id uint32) {
	e.Status, e.Shmid, e.Fdflags = proto.Uint32(StatusRegular|StatusSocket), proto.Uint64(uint64(id)), proto.Uint32(unix.O_RDWR)
}
