package sinks

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"cryo/internal/image"

	"golang.org/x/sync/errgroup"
)

// packer compresses the blocks of one object side by side, and hands them in their order to a goroutine of its own.
type packer struct {
	c      *Compressed
	block  *packedBlock   // being filled; nil: none
	later  []*packedBlock // that nobody has begun to compress
	blocks chan *packedBlock
	group  errgroup.Group
	failed atomic.Bool
}

// packedBlock is a block of a run's pages, or a run, or both.
type packedBlock struct {
	plain  []byte
	memory []byte // the block's own, for plain
	lent   bool   // plain is somebody else's until it has been compressed
	packed []byte // nil: it is stored plainly
	zero   bool
	done   chan struct{} // nil: it has no pages
	run    *image.Run
}

// packedBlocks keeps the memory of blocks.
var packedBlocks = sync.Pool{New: func() any { return new(packedBlock) }}

// start starts the goroutine, which has take called with each block. After an error it goes on taking them, so that nobody waits for
// ever.
func (p *packer) start(c *Compressed, take func(*packedBlock) error) {
	p.c, p.blocks = c, make(chan *packedBlock, cap(c.busy))
	p.group.Go(func() (failed error) {
		for b := range p.blocks {
			if b.done != nil {
				<-b.done
			}
			if failed == nil {
				failed = take(b)
				p.failed.Store(failed != nil)
			}
			if b.done == nil {
				continue
			}
			if !b.lent {
				<-p.c.busy
			}
			b.plain = nil
			packedBlocks.Put(b)
		}
		return failed
	})
}

// fill adds to the block of so many bytes that is being filled, or a new one, and returns how many it took.
func (p *packer) fill(b []byte, size int) (int, error) {
	if p.block == nil {
		select {
		case p.c.busy <- struct{}{}:
		default: // what others wait for may be what nobody has begun
			p.compress(p.takeLater())
			p.c.busy <- struct{}{}
		}
		if p.failed.Load() {
			<-p.c.busy
			return 0, errFailed
		}
		p.block = newPackedBlock()
		p.block.memory = slices.Grow(p.block.memory[:0], size)
		p.block.plain = p.block.memory[:0]
	}
	n := min(size-len(p.block.plain), len(b))
	p.block.plain = append(p.block.plain, b[:n]...)
	return n, nil
}

var errFailed = errors.New("pages could not be written")

func newPackedBlock() *packedBlock {
	b := packedBlocks.Get().(*packedBlock)
	b.packed, b.zero, b.lent, b.run, b.done = b.packed[:0], false, false, nil, make(chan struct{})
	return b
}

// lend takes a whole block without copying it. Its bytes stay as they are until it is compressed: see takeLater.
func (p *packer) lend(plain []byte) error {
	if p.failed.Load() {
		return errFailed
	}
	b := newPackedBlock()
	b.plain, b.lent = plain, true
	p.queue(b)
	p.later = append(p.later, b)
	return nil
}

// takeLater gives out the blocks that nobody has begun to compress.
func (p *packer) takeLater() []*packedBlock {
	later := p.later
	p.later = nil
	return later
}

// compress compresses blocks that were lent.
func (p *packer) compress(blocks []*packedBlock) {
	for _, b := range blocks {
		b.compress(p.c)
		if b.packed == nil && !b.zero { // it is stored as it is, when its memory may be somebody else's again
			b.memory = append(b.memory[:0], b.plain...)
			b.plain = b.memory
		}
		close(b.done)
	}
}

// queue has a block written behind those before.
func (p *packer) queue(b *packedBlock) {
	select {
	case p.blocks <- b:
	default: // the next to be written may be what nobody has begun
		p.compress(p.takeLater())
		p.blocks <- b
	}
}

// dispatch compresses the block that was filled, beside others.
func (p *packer) dispatch(run *image.Run) {
	b := p.block
	p.block = nil
	b.run = run
	if p.c.codec == image.Plain {
		b.packed = nil
		close(b.done)
		p.queue(b)
		return
	}
	p.queue(b)
	go func() {
		b.compress(p.c)
		close(b.done)
	}()
}

func (b *packedBlock) compress(c *Compressed) {
	if b.zero = allZero(b.plain); !b.zero {
		b.packed = c.codec.Shrink(b.packed, b.plain, c.Acceleration)
	}
}

func allZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// data is what is stored of a block.
func (b *packedBlock) data() []byte {
	switch {
	case b.zero:
		return nil
	case b.packed != nil:
		return b.packed
	}
	return b.plain
}

// wait waits until all blocks have been taken. One that was begun is given up.
func (p *packer) wait() error {
	close(p.blocks)
	err := p.group.Wait()
	if p.block != nil { // more bytes than runs
		<-p.c.busy
	}
	return err
}
