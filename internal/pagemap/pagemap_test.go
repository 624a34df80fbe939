package pagemap

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sample is 16 pages: 0 and 1 written, 2 a hole, 3 only read, 4 and 5 guarded, 8 written, the rest holes.
func sample(t *testing.T) (start uint64, guarded bool) {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 16*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil {
		t.Log("huge pages stay on:", err)
	}
	b[0], b[PageSize], b[8*PageSize] = 1, 1, 1
	if b[3*PageSize] != 0 {
		t.Fatal("a fresh page is not zero")
	}
	const madvGuardInstall = 102
	return uint64(uintptr(unsafe.Pointer(&b[0]))), unix.Madvise(b[4*PageSize:6*PageSize], madvGuardInstall) == nil
}

func TestScan(t *testing.T) {
	start, guarded := sample(t)
	page := func(n uint64) uint64 { return start + n*PageSize }
	own := []Region{{page(0), page(2), 0}, {page(8), page(9), 0}}
	populated := []Region{{page(0), page(2), 0}, {page(3), page(4), 0}, {page(8), page(9), 0}}
	var guards []Region
	if guarded && HasGuard() {
		g := Region{page(4), page(6), Guard}
		guards = []Region{g}
		own = []Region{own[0], g, own[1]}
		populated = []Region{populated[0], populated[1], g, populated[2]}
	}
	for _, way := range []struct {
		name string
		scan bool
	}{{"ioctl", true}, {"file", false}} {
		for _, c := range []struct {
			name string
			q    Query
			want []Region
		}{{"own", Own, own}, {"populated", Populated, populated}, {"guards", Guards, guards}} {
			t.Run(way.name+"/"+c.name, func(t *testing.T) {
				if way.scan && !HasScan() {
					t.Skip("this kernel has no PAGEMAP_SCAN")
				}
				if !way.scan && c.name == "own" && probe().zeroPFN == 0 {
					t.Skip("frame numbers are hidden from this process")
				}
				m, err := Open(os.Getpid())
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				m.scan = way.scan
				m.vec = make([]pageRegion, 1) // regions arrive in pieces
				var got []Region
				err = m.Scan(start, page(16), c.q, func(r Region) error { got = append(got, r); return nil })
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Error("want (-) got (+):", diff)
				}
			})
		}
	}
}

func TestScanWholeAddressSpace(t *testing.T) {
	m, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.scan {
		t.Skip("only PAGEMAP_SCAN jumps over holes")
	}
	var last, n uint64
	err = m.Scan(0, 1<<47-PageSize, Own, func(r Region) error {
		if r.Start < last || r.Len() == 0 {
			t.Errorf("region %x-%x after %x", r.Start, r.End, last)
		}
		last = r.End
		n += r.Len() / PageSize
		return nil
	})
	if err != nil || n < 10 {
		t.Errorf("%d pages, %v", n, err)
	}
}

// TestScanManyRegions has more regions than the kernel's own buffer, and fewer than that after the last full one.
func TestScanManyRegions(t *testing.T) {
	const pages = 2 * (maxRegions + 700)
	b, err := unix.Mmap(-1, 0, pages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil {
		t.Log("huge pages stay on:", err)
	}
	for p := 0; p < pages; p += 2 {
		b[p*PageSize] = 1
	}
	start := uint64(uintptr(unsafe.Pointer(&b[0])))
	m, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	next := start
	err = m.Scan(start, start+pages*PageSize, Own, func(r Region) error {
		if r.Start != next || r.Len() != PageSize {
			t.Fatalf("region %x-%x, want a page at %x", r.Start, r.End, next)
		}
		next += 2 * PageSize
		return nil
	})
	if err != nil || next != start+pages*PageSize {
		t.Errorf("ended at %x of %x: %v", next, start+pages*PageSize, err)
	}
}

func TestScanStopsAtErrorOfYield(t *testing.T) {
	start, _ := sample(t)
	m, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	stop := errors.New("stop")
	calls := 0
	err = m.Scan(start, start+16*PageSize, Own, func(Region) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
