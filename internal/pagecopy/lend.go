package pagecopy

import (
	"os"

	"cryo/internal/image"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Piped is a destination whose bytes go into a pipe in the end, and may be moved there from another one: pages by reference, which
// nobody copies before the reader does.
type Piped interface {
	Dest
	// Splices says whether it can do so.
	Splices() bool
	// Seed is the register of a CRC-32C (not inverted) in front of the next n bytes, at most 1 MiB.
	Seed(n int) uint32
	// Splice appends the n bytes there are in a pipe; sum is the register behind them.
	Splice(pipe int, n int, sum uint32) error
}

// Lender is a source that can put its pages into pipes by reference (vmsplice(2)), and make checksums of them where they are.
// They have to stay as they are until the reader of the destination has them.
type Lender interface {
	// Ready and Dense are those of Self.
	Ready() bool
	Dense(addr, n uint64) bool
	// LendPages puts the ranges of each lot into its pipe, which is empty and has room for them. After an error there may be
	// something in the pipes.
	LendPages(lots []Lot) error
}

// Lot is what goes into one pipe.
type Lot struct {
	Ranges []Range
	Sum    uint32 // the register of a CRC-32C before the ranges, and then behind them

	pipe [2]int
	n    int // bytes of the ranges
}

// Pipe is the descriptor to write to.
func (l *Lot) Pipe() int { return l.pipe[1] }

// lending is what a copier needs to have pages lent.
type lending struct {
	from  Lender
	to    Piped
	size  int            // bytes that one pipe has room for
	free  chan *passage  // those that are not in use
	full  chan *passage  // those that are to be emptied, in their order
	group errgroup.Group // empties them
	err   error          // of that; whoever has all passages may read it
}

// passage is pipes between a source and a destination: what goes wrong in the source leaves nothing in the destination's. The
// source fills all of them at once, because to have it do something takes longer than filling one.
type passage struct {
	lots [lotsAtOnce]Lot
	used int
}

const (
	lotsAtOnce = 4
	passages   = 2       // one is filled while the other is emptied
	lotSize    = 1 << 20 // as much as a pipe of anybody may have (fs.pipe-max-size)
)

func openPassage() (*passage, error) {
	p := &passage{}
	for i := range p.lots {
		if err := p.lots[i].open(); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (l *Lot) open() error {
	if err := unix.Pipe2(l.pipe[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(l.pipe[1]), unix.F_SETPIPE_SZ, lotSize) // as much as there is does
	return nil
}

func (p *passage) close() {
	for _, l := range p.lots {
		if l.pipe != [2]int{} {
			unix.Close(l.pipe[0])
			unix.Close(l.pipe[1])
		}
	}
}

// LetSourceLend makes the copier have what it may lent by the source. It comes before the first Put.
func (c *Copier) LetSourceLend(from Lender) {
	to, ok := c.dst.(Piped)
	if !ok || !to.Splices() {
		return
	}
	l := &lending{from: from, to: to, size: lotSize, free: make(chan *passage, passages), full: make(chan *passage, passages)}
	for range passages {
		p, err := openPassage()
		if err != nil { // all is read then
			l.closePipes()
			return
		}
		l.free <- p
		for i := range p.lots {
			size, err := unix.FcntlInt(uintptr(p.lots[i].Pipe()), unix.F_GETPIPE_SZ, 0)
			if err != nil {
				l.closePipes()
				return
			}
			l.size = min(l.size, size)
		}
	}
	l.group.Go(l.empty)
	c.self, c.selfBatch, c.lend, c.moveSelf = from, selfBatch, l, c.moveLent
}

// empty moves what is in passages into the destination. After an error it goes on without, so that nobody waits for ever.
func (l *lending) empty() error {
	for p := range l.full {
		for _, lot := range p.lots[:p.used] {
			if l.err == nil {
				l.err = l.to.Splice(lot.pipe[0], lot.n, lot.Sum)
			}
		}
		l.free <- p
	}
	return l.err
}

// settle waits until all that was lent is in the destination: something else is to follow it. nil has lent nothing.
func (l *lending) settle() error {
	if l == nil {
		return nil
	}
	var all []*passage
	for range passages {
		all = append(all, <-l.free)
	}
	err := l.err
	for _, p := range all {
		l.free <- p
	}
	return err
}

func (l *lending) close() error {
	close(l.full)
	err := l.group.Wait()
	l.closePipes()
	return err
}

func (l *lending) closePipes() {
	for range len(l.free) {
		(<-l.free).close()
	}
}

// moveLent has a batch lent, in its order, and moves by itself what was not.
func (c *Copier) moveLent(b *batch) error {
	if err := c.announceSelf(b); err != nil {
		return err
	}
	done, err := c.lend.batch(b.ranges)
	if err != nil {
		return err
	}
	c.stats.Self.Add(done / pageSize)
	if done < uint64(b.bytes) {
		if err := c.lend.settle(); err != nil {
			return err
		}
		if err := c.rest(b.ranges, b.buffer(), done, func(part []byte, _ uint64) error {
			_, err := c.dst.Write(part)
			return err
		}); err != nil {
			return err
		}
	}
	close(b.placed)
	return nil
}

// batch returns how many bytes were lent. What the source cannot do is no error.
func (l *lending) batch(ranges []Range) (done uint64, err error) {
	for len(ranges) > 0 {
		p := <-l.free
		size := 0
		for p.used = 0; p.used < len(p.lots) && len(ranges) > 0; p.used++ {
			lot := &p.lots[p.used]
			lot.Ranges, ranges, lot.n = firstBytes(ranges, l.size)
			lot.Sum = l.to.Seed(lot.n)
			size += lot.n
		}
		if err := l.from.LendPages(p.lots[:p.used]); err != nil {
			p.close()
			if p, err = openPassage(); err != nil {
				p = &passage{} // the other side waits for it
			}
			l.free <- p
			return done, err
		}
		l.full <- p
		done += uint64(size)
	}
	return done, nil
}

// firstBytes divides ranges behind their first n bytes, or as many as they have.
func firstBytes(ranges []Range, n int) (first, rest []Range, have int) {
	for i, r := range ranges {
		if have+int(r.Len) <= n {
			have += int(r.Len)
			continue
		}
		cut := r
		cut.Len = uint64(n - have)
		if cut.Len > 0 {
			first = append(first, ranges[:i]...)
			first = append(first, cut)
		} else {
			first = ranges[:i]
		}
		r.Addr, r.Len = r.Addr+cut.Len, r.Len-cut.Len
		return first, append([]Range{r}, ranges[i+1:]...), n
	}
	return ranges, nil, have
}

// announceSelf tells the destination the ranges of a batch, none of whose pages is looked at, when it is their turn.
func (c *Copier) announceSelf(b *batch) error {
	if err := c.await(b); err != nil {
		return err
	}
	for _, r := range b.ranges {
		if err := c.dst.Add(r.Addr, r.Len/pageSize, r.Flags|image.PEPresent); err != nil {
			return err
		}
	}
	c.stats.Written.Add(uint64(b.bytes / pageSize))
	return nil
}
