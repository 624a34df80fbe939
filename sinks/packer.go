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
	block  *packedBlock // being filled; nil: none
	blocks chan *packedBlock
	group  errgroup.Group
	failed atomic.Bool
}

// packedBlock is a block of a run's pages, or a run, or both.
type packedBlock struct {
	plain  []byte
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
			if b.done != nil {
				<-p.c.busy
				packedBlocks.Put(b)
			}
		}
		return failed
	})
}

// fill adds to the block of so many bytes that is being filled, or a new one, and returns how many it took.
func (p *packer) fill(b []byte, size int) (int, error) {
	if p.block == nil {
		p.c.busy <- struct{}{}
		if p.failed.Load() {
			<-p.c.busy
			return 0, errors.New("pages could not be written")
		}
		p.block = packedBlocks.Get().(*packedBlock)
		p.block.plain = slices.Grow(p.block.plain[:0], size)
		p.block.packed, p.block.zero, p.block.done = p.block.packed[:0], false, make(chan struct{})
	}
	n := min(size-len(p.block.plain), len(b))
	p.block.plain = append(p.block.plain, b[:n]...)
	return n, nil
}

// dispatch compresses the block that was filled, beside others.
func (p *packer) dispatch(run *image.Run) {
	b := p.block
	p.block = nil
	b.run = run
	p.blocks <- b
	if p.c.codec == image.Plain {
		b.packed = nil
		close(b.done)
		return
	}
	go func() {
		defer close(b.done)
		if b.zero = allZero(b.plain); !b.zero {
			b.packed = p.c.codec.Shrink(b.packed, b.plain, p.c.Acceleration)
		}
	}()
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
