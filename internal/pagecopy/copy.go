package pagecopy

import (
	"cmp"
	"context"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"cryo/internal/image"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Dest is where runs and bytes go; sinks.Pagemap is one.
type Dest interface {
	// Add announces a run of pages; runs ascend.
	Add(vaddr, pages uint64, flags uint32) error
	// Direct tells the file that Reserve's offsets are of; ok is false where there is none.
	Direct() (f *os.File, off int64, ok bool)
	// Reserve sets the next n bytes of that file aside and returns their offset.
	Reserve(n int64) (off int64)
	// Write appends the next bytes.
	io.Writer
}

// Later is a destination that makes something else of the bytes, which takes longer than moving them. Several workers do so side
// by side, each with what it has just read.
type Later interface {
	Dest
	// WriteLater is Write of bytes that stay as they are until what Later returns has been called.
	WriteLater(b []byte) error
	// Later returns what is left to be done with the bytes of all WriteLater since the last time. It is called beside others, and
	// beside all methods, and without delay: others wait for it.
	Later() func()
}

// Source is what pages are read from.
type Source interface {
	// ReadPages fills buf, which is as long as all the ranges together, with their contents. It is called
	// by several goroutines at a time.
	ReadPages(ranges []Range, buf []byte) error
}

// Vanishing is a source some of whose pages may have gone when they are to be read.
type Vanishing interface {
	Source
	// ReadLeft is ReadPages of what there is: it returns that, and has filled the beginning of buf with it.
	ReadLeft(ranges []Range, buf []byte) ([]Range, error)
}

// Range is a run of pages to be moved.
type Range struct {
	Addr, Len uint64 // bytes, multiples of the page size
	Flags     uint32 // image.PE* of its entry, PEPresent being understood
	KeepZero  bool   // pages of zeros have to be stored: without them something else would be seen
	Force     bool   // the task may not read them
	Absent    bool   // only announced: the bytes stay where they are
}

// Stats counts what was done. It may be read at any time.
type Stats struct {
	Written atomic.Uint64 // pages whose bytes were stored
	Self    atomic.Uint64 // of them, pages that the source wrote by itself
	Zero    atomic.Uint64 // pages that were left out because they were zero
	Parent  atomic.Uint64 // pages that were left to the parent set
	Lost    atomic.Uint64 // pages that had gone when they were to be read
}

const (
	pageSize  = image.PageSize
	batchSize = 512 << 10 // bytes; half of a core's cache at least
	maxRanges = 1024      // IOV_MAX of Linux
)

// buffer is the batch's memory, made on first use.
func (b *batch) buffer() []byte {
	if b.buf == nil {
		b.buf = make([]byte, batchSize)
		b.iov = make([][]byte, 0, maxRanges)
	}
	return b.buf
}

// Workers is how many workers a Copier has if it is not told: what one file can make use of.
func Workers() int { return min(2, runtime.GOMAXPROCS(0)) }

// WorkersBeside is how many leave a processor to the program whose pages are moved while it runs.
func WorkersBeside() int { return max(1, min(Workers(), runtime.GOMAXPROCS(0)-1)) }

// Copier moves pages from one source to one destination.
type Copier struct {
	src   Source
	dst   Dest
	file  *os.File // dst's, nil: bytes go through Write
	self  willing  // nil: workers read everything
	lend  *lending // that of it, if it lends
	later Later    // dst, if it is one
	stats *Stats

	moveSelf  func(*batch) error // what is done with a batch of its
	selfBatch int                // bytes of one

	group   *errgroup.Group
	ctx     context.Context
	workers int // to be hired with the second batch
	first   *batch
	work    chan *batch
	free    chan *batch
	cur     *batch
	last    chan struct{} // closed when the batch before has its place
}

// batches keeps batches between copiers: a tree has many small tasks.
var batches = sync.Pool{New: func() any { return &batch{} }}

// batch is what a worker does at a time.
type batch struct {
	self   bool // the source writes it
	ranges []Range
	bytes  int
	buf    []byte
	iov    [][]byte
	before <-chan struct{}
	placed chan struct{}
}

// New starts a copier with the given number of workers. Put feeds it, Close ends it.
func New(ctx context.Context, src Source, dst Dest, workers int, stats *Stats) *Copier {
	c := &Copier{src: src, dst: dst, stats: stats}
	if f, _, ok := dst.Direct(); ok {
		c.file = f
	}
	c.group, c.ctx = errgroup.WithContext(ctx)
	workers = max(workers, 1)
	if c.later, _ = dst.(Later); c.later != nil { // it is they who do the work
		workers = runtime.GOMAXPROCS(0)
	}
	c.work, c.free = make(chan *batch, workers), make(chan *batch, workers+1)
	for range cap(c.free) {
		c.free <- batches.Get().(*batch)
	}
	c.workers = workers
	c.last = make(chan struct{})
	close(c.last)
	return c
}

// Put adds a range behind all that came before. An error is that of the whole copy.
func (c *Copier) Put(r Range) error {
	for r.Len > 0 {
		n, self := c.cut(r)
		part := r
		part.Len = n
		if err := c.put(part, self); err != nil {
			return err
		}
		r.Addr, r.Len = r.Addr+n, r.Len-n
	}
	return nil
}

// put adds a range to batches for the source, or for the workers.
func (c *Copier) put(r Range, self bool) error {
	limit := batchSize
	if self {
		limit = c.selfBatch
	} else if c.later != nil && r.Len >= batchSize && c.cur != nil { // so that what is made of it begins with a batch
		if err := c.send(); err != nil {
			return err
		}
	}
	for r.Len > 0 {
		if c.cur != nil && c.cur.self != self {
			if err := c.send(); err != nil {
				return err
			}
		}
		if c.cur == nil {
			select {
			case c.cur = <-c.free:
				c.cur.ranges, c.cur.bytes, c.cur.self = c.cur.ranges[:0], 0, self
			case <-c.ctx.Done():
				return c.fail()
			}
		}
		part := r
		if !r.Absent {
			part.Len = min(r.Len, uint64(limit-c.cur.bytes))
			c.cur.bytes += int(part.Len)
		}
		c.cur.ranges = append(c.cur.ranges, part)
		r.Addr, r.Len = r.Addr+part.Len, r.Len-part.Len
		if c.cur.bytes == limit || len(c.cur.ranges) == maxRanges {
			if err := c.send(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Copier) send() error {
	b := c.cur
	c.cur = nil
	b.before, b.placed = c.last, make(chan struct{})
	c.last = b.placed
	if c.workers > 0 {
		if c.first == nil {
			c.first = b // if it remains the only one, it is not worth any worker
			return nil
		}
		for range c.workers {
			c.group.Go(c.run)
		}
		c.workers = 0
		c.work <- c.first
		c.first = nil
	}
	select {
	case c.work <- b:
		return nil
	case <-c.ctx.Done():
		return c.fail()
	}
}

// fail is the error of the worker that failed, or of the context.
func (c *Copier) fail() error {
	if err := c.group.Wait(); err != nil {
		return err
	}
	return context.Cause(c.ctx)
}

// Close waits until all is written. It has to be called in any case, and repeats the error of a Put that failed.
func (c *Copier) Close() error {
	err := context.Cause(c.ctx) // a Put that failed left nothing behind to send
	if c.cur != nil && err == nil {
		err = c.send()
	}
	close(c.work)
	if c.first != nil && err == nil {
		err = c.do(c.first)
	}
	if werr := c.group.Wait(); werr != nil {
		err = werr
	}
	for range len(c.free) {
		batches.Put(<-c.free)
	}
	if c.lend != nil {
		if lerr := c.lend.close(); err == nil {
			err = lerr
		}
	}
	return err
}

func (c *Copier) run() error {
	for {
		select {
		case b, ok := <-c.work:
			if !ok {
				return nil
			}
			if err := c.do(b); err != nil {
				return err
			}
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
}

// do does a batch and gives it back.
func (c *Copier) do(b *batch) error {
	move := c.move
	if b.self {
		move = c.moveSelf
	}
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	if err := move(b); err != nil {
		return err
	}
	c.free <- b
	return nil
}

// move reads a batch, announces what of it is stored, and writes that.
func (c *Copier) move(b *batch) error {
	buf := b.buffer()[:b.bytes]
	if err := c.read(b, buf); err != nil {
		return err
	}
	if err := c.await(b); err != nil {
		return err
	}
	if err := c.lend.settle(); err != nil {
		return err
	}
	kept, err := c.announce(b, buf)
	if c.later != nil {
		defer c.later.Later()()
	}
	if err != nil {
		return err
	}
	var off int64
	if c.file != nil && kept > 0 {
		off = c.dst.Reserve(kept)
	}
	close(b.placed)
	if c.file == nil {
		return nil
	}
	return writeAll(c.file, b.iov, off)
}

// read reads a batch. What a source has no more is taken out of it.
func (c *Copier) read(b *batch, buf []byte) error {
	reads := b.reads()
	some, ok := c.src.(Vanishing)
	if !ok {
		return c.src.ReadPages(reads, buf)
	}
	left, err := some.ReadLeft(reads, buf)
	lost := b.bytes
	for _, r := range left {
		lost -= int(r.Len)
	}
	if err != nil || lost == 0 {
		return err
	}
	c.stats.Lost.Add(uint64(lost) / pageSize)
	b.bytes -= lost
	b.ranges = append(slices.DeleteFunc(b.ranges, func(r Range) bool { return !r.Absent }), left...)
	slices.SortFunc(b.ranges, func(x, y Range) int { return cmp.Compare(x.Addr, y.Addr) })
	return nil
}

// reads lists the ranges whose bytes are wanted.
func (b *batch) reads() []Range {
	absent := func(r Range) bool { return r.Absent }
	if !slices.ContainsFunc(b.ranges, absent) {
		return b.ranges
	}
	return slices.DeleteFunc(slices.Clone(b.ranges), absent)
}

// await waits until all batches before have their places.
func (c *Copier) await(b *batch) error {
	select {
	case <-b.before:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// announce tells the destination the runs that are stored. Their bytes are collected in b.iov, or follow each run at
// once where they go through Write.
func (c *Copier) announce(b *batch, buf []byte) (kept int64, err error) {
	b.iov = b.iov[:0]
	for _, r := range b.ranges {
		if r.Absent {
			if err := c.dst.Add(r.Addr, r.Len/pageSize, r.Flags); err != nil {
				return 0, err
			}
			if r.Flags&image.PEParent != 0 {
				c.stats.Parent.Add(r.Len / pageSize)
			}
			continue
		}
		part := buf[:r.Len]
		buf = buf[r.Len:]
		for addr := r.Addr; len(part) > 0; {
			n, zero := len(part), false
			if !r.KeepZero {
				n, zero = sameRun(part)
			}
			if zero {
				c.stats.Zero.Add(uint64(n / pageSize))
			} else {
				if err := c.dst.Add(addr, uint64(n/pageSize), r.Flags|image.PEPresent); err != nil {
					return 0, err
				}
				switch {
				case c.file != nil:
					b.iov = joinIov(b.iov, part[:n])
				case c.later != nil:
					err = c.later.WriteLater(part[:n])
				default:
					_, err = c.dst.Write(part[:n])
				}
				if err != nil {
					return 0, err
				}
				kept += int64(n)
			}
			part, addr = part[n:], addr+uint64(n)
		}
	}
	c.stats.Written.Add(uint64(kept / pageSize))
	return kept, nil
}

// joinIov appends bytes that follow the last ones in the same buffer to them.
func joinIov(iov [][]byte, b []byte) [][]byte {
	if n := len(iov); n > 0 {
		last := iov[n-1]
		if cap(last) > len(last) && &last[:len(last)+1][len(last)] == &b[0] {
			iov[n-1] = last[:len(last)+len(b)]
			return iov
		}
	}
	return append(iov, b)
}

func writeAll(f *os.File, iov [][]byte, off int64) error {
	for len(iov) > 0 {
		n, err := pwritev(int(f.Fd()), iov[:min(len(iov), maxRanges)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: f.Name(), Err: err}
		}
		off += int64(n)
		for n > 0 {
			if n < len(iov[0]) {
				iov[0] = iov[0][n:]
				break
			}
			n -= len(iov[0])
			iov = iov[1:]
		}
	}
	return nil
}

func pwritev(fd int, iov [][]byte, off int64) (int, error) {
	if len(iov) == 1 {
		return unix.Pwrite(fd, iov[0], off)
	}
	return unix.Pwritev(fd, iov, off)
}
