package image

import (
	"fmt"
	"io"
	"sort"
	"sync"
)

// blocks are where the bytes of a compressed pages file are, so that any part of it can be had without the rest.
type blocks struct {
	list []block // ascending in both files, without holes
	mu   sync.Mutex
	kept [keptBlocks]keptBlock // expanded for those who want a part of one
	next int                   // of kept, to be replaced
}

// block is a piece that is compressed, zero or plain by itself.
type block struct {
	from, to    int64  // in the file as stored, in the file as read
	size, bytes uint32 // as stored, as read; the same: plain; no size: zeros
	codec       Codec
}

// keptBlocks is how many expanded blocks are kept: windows of several workers end in the middle of one.
const keptBlocks = 4

type keptBlock struct {
	from  int64 // which block; no two of a file that are not zeros have the same
	bytes []byte
}

// maxPlainBlock bounds a block that is plain.
const maxPlainBlock = 1 << 30

// addPlain appends n bytes that are stored as they are.
func (b *blocks) addPlain(from, to, n int64) {
	for n > 0 {
		part := min(n, maxPlainBlock)
		b.list = append(b.list, block{from: from, to: to, size: uint32(part), bytes: uint32(part)})
		from, to, n = from+part, to+part, n-part
	}
}

// read is ReadAt of a pages file that has blocks.
func (b *blocks) read(in io.ReaderAt, p []byte, off int64) error {
	for i := sort.Search(len(b.list), func(i int) bool { return b.list[i].to+int64(b.list[i].bytes) > off }); len(p) > 0; i++ {
		bl := &b.list[i]
		skip := off - bl.to
		n := min(int64(len(p)), int64(bl.bytes)-skip)
		if err := b.part(in, bl, p[:n], skip); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// part reads what begins skip bytes into a block.
func (b *blocks) part(in io.ReaderAt, bl *block, p []byte, skip int64) error {
	switch {
	case bl.size == 0:
		clear(p)
		return nil
	case bl.size == bl.bytes:
		_, err := in.ReadAt(p, bl.from+skip)
		return cut(err, "its blocks")
	case len(p) == int(bl.bytes):
		return bl.expand(in, p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.kept {
		if k := &b.kept[i]; k.bytes != nil && k.from == bl.from {
			copy(p, k.bytes[skip:])
			return nil
		}
	}
	k := &b.kept[b.next]
	b.next = (b.next + 1) % keptBlocks
	plain := grown(k.bytes, int(bl.bytes))
	k.bytes = nil
	if err := bl.expand(in, plain); err != nil {
		return err
	}
	k.from, k.bytes = bl.from, plain
	copy(p, plain[skip:])
	return nil
}

var packedBuffers = sync.Pool{New: func() any { return new([]byte) }}

// expand makes a whole block what it was.
func (bl *block) expand(in io.ReaderAt, p []byte) error {
	buf := packedBuffers.Get().(*[]byte)
	defer packedBuffers.Put(buf)
	*buf = grown(*buf, int(bl.size))
	if _, err := in.ReadAt(*buf, bl.from); err != nil {
		return cut(err, "its blocks")
	}
	if err := bl.codec.expand(p, *buf); err != nil {
		return fmt.Errorf("the block at %d: %w", bl.from, err)
	}
	return nil
}

// within is where those blocks are stored that lie in a part of the file as read.
func (b *blocks) within(off, n int64) (from, size int64) {
	first := sort.Search(len(b.list), func(i int) bool { return b.list[i].to >= off })
	end := sort.Search(len(b.list), func(i int) bool { return b.list[i].to+int64(b.list[i].bytes) > off+n })
	if first >= end {
		return 0, 0
	}
	last := b.list[end-1]
	return b.list[first].from, last.from + int64(last.size) - b.list[first].from
}
