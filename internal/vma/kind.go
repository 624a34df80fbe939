package vma

import (
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Kind is what is behind a mapping; it decides who stores and restores its content.
type Kind uint8

// The kinds of mappings.
const (
	Anonymous       Kind = iota // private memory of no file: heap, stack, malloc; also private huge pages
	File                        // a file, mapped private or shared
	SharedAnonymous             // MAP_SHARED|MAP_ANONYMOUS: one nameless file of the kernel's own tmpfs
	Memfd                       // memfd_create
	SysV                        // shmat
	AIORing                     // the completion ring of io_setup
	VDSO
	VVAR // kernel data the vdso reads: [vvar], [vvar_vclock]
	Vsyscall
	Uprobes // made by the kernel when a probe is hit, and made again after a restore
)

// The names the kernel gives to mappings without a file, and to files without a directory.
const (
	heapName        = "[heap]"
	stackName       = "[stack]"
	vsyscallName    = "[vsyscall]"
	vectorsName     = "[vectors]" // what 32 bit ARM has for a vsyscall page
	sharedAnonName  = "/dev/zero (deleted)"
	namedAnonPrefix = "[anon_shmem:" // the same with PR_SET_VMA_ANON_NAME
	anonHugeName    = "/anon_hugepage (deleted)"
	sysvPrefix      = "/SYSV"
	memfdPrefix     = "/memfd:"
	aioRingName     = "/[aio] (deleted)"
	uprobesName     = "[uprobes]"
	vdsoName        = "[vdso]"
	vvarName        = "[vvar]"
	vvarVclockName  = "[vvar_vclock]"
	hugepagesFolder = "/sys/kernel/mm/hugepages"
)

// Kind classifies the mapping by its device and name. A name alone proves nothing: anybody may call a file
// "/memfd:x (deleted)", but not on the kernel's internal file systems.
func (m *Mapping) Kind() Kind {
	switch m.Name {
	case vdsoName:
		return VDSO
	case vvarName, vvarVclockName:
		return VVAR
	case vsyscallName, vectorsName:
		return Vsyscall
	case uprobesName:
		return Uprobes
	}
	switch {
	case !m.HasFile():
		return Anonymous
	case m.Name == aioRingName && unix.Major(m.Dev) == 0:
		return AIORing
	case m.Dev == shmemDev() || m.HugePage() != 0:
		return m.internalFile()
	}
	return File
}

// internalFile tells the users of the kernel's internal tmpfs and hugetlbfs apart.
func (m *Mapping) internalFile() Kind {
	switch {
	case strings.HasPrefix(m.Name, sysvPrefix):
		return SysV
	case m.Name == anonHugeName && !m.Shared:
		return Anonymous
	case m.Name == anonHugeName, m.Name == sharedAnonName && m.Shared, strings.HasPrefix(m.Name, namedAnonPrefix):
		return SharedAnonymous
	}
	return Memfd
}

// MemfdName is the name given to memfd_create.
func (m *Mapping) MemfdName() string { return strings.TrimPrefix(m.Path(), memfdPrefix) }

// Heap says whether the kernel calls the mapping the heap.
func (m *Mapping) Heap() bool { return m.Name == heapName }

// Stack says whether the kernel calls the mapping the stack of the first thread.
func (m *Mapping) Stack() bool { return m.Name == stackName }

// HugePage is the size in bytes of the huge pages of the kernel's internal hugetlbfs that the mapping is
// made of, 0 for all other mappings. (A file of a mounted hugetlbfs is a file.)
func (m *Mapping) HugePage() uint64 { return HugePageOf(m.Dev) }

// HugePageOf is the page size in bytes of the kernel's internal hugetlbfs with device number dev, 0 if dev is
// none of them.
func HugePageOf(dev uint64) uint64 { return hugetlbDevs()[dev] }

// IsShmemDev says whether dev is the kernel's internal tmpfs: memfds, shared anonymous and SysV memory.
func IsShmemDev(dev uint64) bool { return dev == shmemDev() }

// MapHuge is the MAP_HUGE_* flag (and MFD_HUGE_*, they are equal) for pages of size bytes.
func MapHuge(size uint64) uint32 { return uint32(bits.TrailingZeros64(size)) << unix.MAP_HUGE_SHIFT }

// shmemDev is the device number of the kernel's internal tmpfs, learnt from a memfd.
var shmemDev = sync.OnceValue(func() uint64 { return memfdDev(0) })

// hugetlbDevs are the device numbers of the kernel's internal hugetlbfs instances with their page sizes; a
// memfd takes no huge page before it is written.
var hugetlbDevs = sync.OnceValue(func() map[uint64]uint64 {
	devs := map[uint64]uint64{}
	sizes, err := os.ReadDir(hugepagesFolder)
	if err != nil {
		return devs
	}
	for _, s := range sizes {
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(s.Name(), "hugepages-"), "kB"), 10, 40)
		if err != nil {
			continue
		}
		if dev := memfdDev(unix.MFD_HUGETLB | int(MapHuge(kb<<10))); dev != 0 {
			devs[dev] = kb << 10
		}
	}
	return devs
})

func memfdDev(flags int) uint64 {
	fd, err := unix.MemfdCreate("probe", flags|unix.MFD_CLOEXEC)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Dev
}

// Warm finds out what is asked only once in a process, so that no task stands still for it.
func Warm() {
	shmemDev()
	hugetlbDevs()
	gateArea()
}
