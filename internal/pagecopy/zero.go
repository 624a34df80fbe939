package pagecopy

import "bytes"

var zeroes [pageSize]byte

// isZero says whether a page has nothing but zeros. The comparison leaves at the first other byte, which is
// near the beginning of most pages.
func isZero(page []byte) bool { return bytes.Equal(page, zeroes[:]) }

// sameRun is the length in bytes of the run of pages at the beginning of b that are all zero, or all not.
func sameRun(b []byte) (n int, zero bool) {
	zero = isZero(b[:pageSize])
	for n = pageSize; n < len(b) && isZero(b[n:n+pageSize]) == zero; n += pageSize {
	}
	return n, zero
}
