package image

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// LZ4's block format (lz4_Block_format.md): sequences of literals and a match, 2 bytes of distance; matches are no shorter
// than 4 bytes, and the last bytes of a block are literals.
const (
	lz4MinMatch     = 4
	lz4LastLiterals = 5
	lz4LastMatch    = 12 // no match begins nearer to the end
	lz4MaxDistance  = 1<<16 - 1
	lz4TableBits    = 13
	lz4SkipBits     = 6 // the search goes a byte further with every 64 bytes that have no match
)

var lz4Tables = sync.Pool{New: func() any { return new([1 << lz4TableBits]int32) }}

// fastLZ4 compresses src with LZ4 as the library does, but looks only at every n-th byte for what repeats, n the
// acceleration: it is faster the less it finds, and the block larger. The library has no such choice. It returns nil where
// the block does not get smaller.
func fastLZ4(dst, src []byte, acceleration int) []byte {
	table := lz4Tables.Get().(*[1 << lz4TableBits]int32)
	defer lz4Tables.Put(table)
	clear(table[:])
	load := func(at int) uint32 { return binary.LittleEndian.Uint32(src[at:]) }
	dst = dst[:0]
	done := 0 // up to here src is in dst
	for at := 1; ; {
		match := -1
		for tries := acceleration << lz4SkipBits; at <= len(src)-lz4LastMatch; tries++ {
			slot := &table[load(at)*2654435761>>(32-lz4TableBits)]
			before := int(*slot)
			*slot = int32(at)
			if at-before <= lz4MaxDistance && load(before) == load(at) {
				match = before
				break
			}
			at += tries >> lz4SkipBits
		}
		if match < 0 {
			break
		}
		for at > done && match > 0 && src[at-1] == src[match-1] {
			at, match = at-1, match-1
		}
		more := commonPrefix(src[at+lz4MinMatch:len(src)-lz4LastLiterals], src[match+lz4MinMatch:])
		if len(dst)+lz4Room(at-done, more) >= len(src) {
			return nil
		}
		dst = lz4Sequence(dst, src[done:at], at-match, more)
		at += lz4MinMatch + more
		done = at
	}
	if len(dst)+lz4Room(len(src)-done, 0) >= len(src) {
		return nil
	}
	return lz4Sequence(dst, src[done:], 0, 0)
}

// lz4Room is how many bytes a sequence takes at most.
func lz4Room(literals, more int) int { return 1 + literals + literals/255 + 1 + 2 + more/255 + 1 }

// lz4Sequence appends literals and, with a distance, a match that is so many bytes longer than the shortest one.
func lz4Sequence(dst, literals []byte, distance, more int) []byte {
	dst = append(dst, byte(min(len(literals), 15)<<4|min(more, 15)))
	dst = append(lz4Length(dst, len(literals)), literals...)
	if distance == 0 {
		return dst
	}
	return lz4Length(binary.LittleEndian.AppendUint16(dst, uint16(distance)), more)
}

// lz4Length appends what of a length has no room in the first byte of its sequence.
func lz4Length(dst []byte, n int) []byte {
	if n -= 15; n < 0 {
		return dst
	}
	for ; n >= 255; n -= 255 {
		dst = append(dst, 255)
	}
	return append(dst, byte(n))
}

// commonPrefix is how many bytes a and b begin alike with; b is no shorter than a.
func commonPrefix(a, b []byte) (n int) {
	for ; n+8 <= len(a); n += 8 {
		if differ := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); differ != 0 {
			return n + bits.TrailingZeros64(differ)/8
		}
	}
	for ; n < len(a) && a[n] == b[n]; n++ {
	}
	return n
}
