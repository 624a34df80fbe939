package restorers

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// mapFresh maps size bytes at addr.
func mapFresh(addr uint64, size int) error {
	_, err := unix.MmapPtr(-1, 0, *(*unsafe.Pointer)(unsafe.Pointer(&addr)), uintptr(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED_NOREPLACE)
	return err
}

// testSet is a set being written to a directory.
type testSet struct{ dir string }

// Create makes an image file.
func (s testSet) Create(name string) (image.Writer, error) {
	return os.Create(filepath.Join(s.dir, name))
}

// pagemap writes a page map.
func (s testSet) pagemap(t *testing.T, id uint64, pagesID uint32, runs []image.Run) {
	t.Helper()
	f, err := s.Create(image.Pagemap.File(id))
	if err != nil {
		t.Fatal(err)
	}
	e := image.NewEncoder(f, "pagemap", image.Pagemap.Type)
	if err := e.Entry(&pagemap.PagemapHead{PagesId: &pagesID}); err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if err := e.Entry(&pagemap.PagemapEntry{Vaddr: &r.Addr, CompatNrPages: proto.Uint32(0), NrPages: &r.Pages, Flags: &r.Flags}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
