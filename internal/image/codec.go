package image

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codec is how the bytes of pages are made smaller, block by block. The zero value is none.
type Codec int

// The codecs. LZ4 blocks are what criu's development branch writes and reads; zstd is an extension that it does not read.
const (
	Plain Codec = iota
	LZ4
	Zstd
)

func (c Codec) String() string { return [...]string{"plain", "lz4", "zstd"}[c] }

var (
	lz4s  = sync.Pool{New: func() any { return new(lz4.Compressor) }}
	zstds = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
		if err != nil {
			panic(err) // of options that are constant
		}
		return e
	})
	unzstds = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(2*maxBlock), zstd.WithDecoderConcurrency(0))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// Shrink returns the block src made smaller, in dst's memory where it fits, or nil where it does not get smaller. An
// acceleration above 1 has LZ4 look for less, see fastLZ4; zstd knows none.
func (c Codec) Shrink(dst, src []byte, acceleration int) []byte {
	switch c {
	case LZ4:
		if acceleration > 1 {
			return fastLZ4(dst, src, acceleration)
		}
		z := lz4s.Get().(*lz4.Compressor)
		defer lz4s.Put(z)
		dst = grown(dst[:0], len(src)-1)
		n, err := z.CompressBlock(src, dst)
		if err != nil || n == 0 {
			return nil
		}
		return dst[:n]
	case Zstd:
		if dst = zstds().EncodeAll(src, dst[:0]); len(dst) < len(src) {
			return dst
		}
	}
	return nil
}

// expand fills dst with what a block was; it must have that length exactly.
func (c Codec) expand(dst, src []byte) error {
	var n int
	var err error
	switch c {
	case LZ4:
		n, err = lz4.UncompressBlock(src, dst)
	case Zstd:
		var out []byte
		// Room for one byte more tells a block that is too long from one that fits.
		if out, err = unzstds().DecodeAll(src, dst[:0:len(dst)]); err == nil {
			if n = len(out); n == len(dst) && n > 0 && &out[0] != &dst[0] {
				n = copy(dst, out)
			}
		}
	default:
		err = fmt.Errorf("codec %d is not known", c)
	}
	if err != nil || n != len(dst) {
		return errors.Join(fmt.Errorf("it does not expand to %d bytes", len(dst)), err, ErrFormat)
	}
	return nil
}
