// Package checksum puts checksums together that were made of pieces. It touches no kernel interface and no image; the stream
// of a dump has such checksums (CRC-32C).
//
// A register of a CRC is a polynomial over GF(2): bytes of zeros behind it multiply it with a power of x, modulo the CRC's own
// polynomial, and registers add up (exclusive or). So pieces can be gone over side by side, each but the first with a register
// that begins with 0.
package checksum

import "hash/crc32"

// Join is the register of a CRC-32C, not inverted, behind a piece of n bytes: before is the one in front of it, and of is what the
// piece makes of 0.
func Join(before, of uint32, n uint64) uint32 { return times(before, powerOfBytes(n)) ^ of }

// one is the polynomial 1: the highest bit is the lowest power.
const one = 1 << 31

// times multiplies two polynomials.
func times(a, b uint32) (product uint32) {
	for bit := uint32(one); a != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
			a &^= bit
		}
		// b times x.
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}

// powerOfBytes is x to the power of 8n.
func powerOfBytes(n uint64) uint32 {
	power, square := uint32(one), uint32(one>>8)
	for ; n != 0; n >>= 1 {
		if n&1 != 0 {
			power = times(power, square)
		}
		square = times(square, square)
	}
	return power
}
