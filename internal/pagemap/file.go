package pagemap

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Bits of an entry of /proc/PID/pagemap.
const (
	bitSoftDirty = 1 << 55
	bitGuard     = 1 << 58 // Linux 6.15
	bitFile      = 1 << 61
	bitSwapped   = 1 << 62
	bitPresent   = 1 << 63
	maskPFN      = 1<<55 - 1 // 0 for whoever lacks CAP_SYS_ADMIN
)

// scanFile reads the entries themselves and does what PAGEMAP_SCAN would have done.
func (m *Map) scanFile(start, end uint64, q Query, yield func(Region) error) error {
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
		for ; n > 0; n -= 8 {
			c := categories(binary.NativeEndian.Uint64(want))
			if q.selects(c) {
				if err := yield(Region{start, start + PageSize, c & q.Return}); err != nil {
					return err
				}
			}
			want = want[8:]
			start += PageSize
		}
	}
	return nil
}

func (q Query) selects(c Category) bool {
	c ^= q.Inverted
	return c&q.Mask == q.Mask && (q.AnyOf == 0 || c&q.AnyOf != 0)
}

func categories(entry uint64) (c Category) {
	for _, b := range [...]struct {
		bit uint64
		c   Category
	}{{bitSoftDirty, SoftDirty}, {bitGuard, Guard}, {bitFile, File}, {bitSwapped, Swapped}, {bitPresent, Present}} {
		if entry&b.bit != 0 {
			c |= b.c
		}
	}
	if c&Present != 0 && entry&maskPFN != 0 && entry&maskPFN == probe().zeroPFN {
		c |= PFNZero
	}
	return c
}
