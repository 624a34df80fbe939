package pagemap

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Entry is the 64 bits that /proc/PID/pagemap has of one page. Only they tell a page that is missing and write protected
// by a userfaultfd from one in swap.
type Entry uint64

const (
	bitWriteProtected = 1 << 57 // by a userfaultfd; Linux 5.14
	maskSwapType      = 0x1f
	markerType        = 0x1f // of what looks like a page in swap and is a mark of a page that is not there; Linux 5.19
)

// WriteProtected says whether a userfaultfd protects the page, which need not be there.
func (e Entry) WriteProtected() bool { return e&bitWriteProtected != 0 }

// Mapped says whether the page is in memory and in the task's page table.
func (e Entry) Mapped() bool { return e&bitPresent != 0 }

// Own says whether there is a page that is not one of a file or of shared memory. That a page is not there, but marked, can
// be told by who has CAP_SYS_ADMIN only.
func (e Entry) Own() bool {
	if e&bitPresent != 0 {
		return e&bitFile == 0
	}
	return e&bitSwapped != 0 && e&maskSwapType != markerType
}

// Entries calls yield with every page from start to end, where tasks can have pages.
func (m *Map) Entries(start, end uint64, yield func(addr uint64, e Entry) error) error {
	if m.buf == nil {
		m.buf = make([]byte, 8*maxPages)
	}
	for start < end {
		want := m.buf[:8*min(maxPages, (end-start+PageSize-1)/PageSize)]
		n, err := m.f.ReadAt(want, int64(start/PageSize*8))
		if err != nil && (err != io.EOF || n%8 != 0) {
			return fmt.Errorf("%s at %x: %w", m.f.Name(), start, err)
		}
		if n == 0 { // past the highest address a task can have
			return nil
		}
		for b := want[:n]; len(b) > 0; b = b[8:] {
			if err := yield(start, Entry(binary.NativeEndian.Uint64(b))); err != nil {
				return err
			}
			start += PageSize
		}
	}
	return nil
}
