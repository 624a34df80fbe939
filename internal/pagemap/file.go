package pagemap

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
	return m.Entries(start, end, func(addr uint64, e Entry) error {
		if c := categories(uint64(e)); q.selects(c) {
			return yield(Region{addr, addr + PageSize, c & q.Return})
		}
		return nil
	})
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
