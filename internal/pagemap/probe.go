package pagemap

import (
	"encoding/binary"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// features is what this kernel can do, found by doing it to a page of this process.
type features struct {
	scan, guard bool
	zeroPFN     uint64 // frame of the zero page, 0 when this process may not know
}

// noScanFault is the number under which criu's tests turn PAGEMAP_SCAN off, to see the way of older kernels work.
const noScanFault = "135"

var probe = sync.OnceValue(func() (ft features) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return ft
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, PageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return ft
	}
	defer unix.Munmap(page)
	unix.Madvise(page, unix.MADV_POPULATE_READ)
	start := uint64(uintptr(unsafe.Pointer(&page[0])))
	vec := make([]pageRegion, 1)
	_, _, err = scanCall(int(f.Fd()), start, start+PageSize, Query{AnyOf: Present}, 0, 1, vec)
	ft.scan = err == nil && os.Getenv("CRIU_FAULT") != noScanFault
	_, _, err = scanCall(int(f.Fd()), start, start+PageSize, Guards, 0, 1, vec)
	ft.guard = err == nil
	if page[0] == 0 { // read by hand for kernels without MADV_POPULATE_READ (5.14)
		ft.zeroPFN = frameOf(f, start)
	}
	return ft
})

func frameOf(f *os.File, addr uint64) uint64 {
	var entry [8]byte
	if _, err := f.ReadAt(entry[:], int64(addr/PageSize*8)); err != nil {
		return 0
	}
	if e := binary.NativeEndian.Uint64(entry[:]); e&bitPresent != 0 {
		return e & maskPFN
	}
	return 0
}

// HasScan says whether this kernel has PAGEMAP_SCAN (Linux 6.7).
func HasScan() bool { return probe().scan }

// HasGuard says whether this kernel tells guard pages apart (Linux 6.15).
func HasGuard() bool { return probe().guard }
