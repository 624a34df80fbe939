package pagecopy

import (
	"errors"
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

// Lender is a source that can put its pages into a pipe by reference (vmsplice(2)), and make a checksum of them where they are.
// They have to stay as they are until the pipe's reader has them.
type Lender interface {
	// Ready and Dense are those of Self.
	Ready() bool
	Dense(addr, n uint64) bool
	// LendPages puts the ranges into an empty pipe that has room for them, and returns what becomes of the register of a CRC-32C.
	// After an error there may be something in the pipe.
	LendPages(pipe int, ranges []Range, seed uint32) (sum uint32, err error)
}

// lending is what a copier needs to have pages lent.
type lending struct {
	from Lender
	to   Piped
	free chan *passage // those that are not in use, two in all: one is filled while the other is emptied
	size int           // bytes that one has room for
}

// passage is the pipe between a source and a destination: what goes wrong in the source leaves nothing in the destination's.
type passage struct{ r, w int }

// lentFrame is what lies in a passage.
type lentFrame struct {
	*passage
	n   int
	sum uint32
}

// passageSize is as much as a pipe of anybody may have (fs.pipe-max-size).
const passageSize = 1 << 20

func openPassage() (*passage, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, passageSize) // as much as there is does
	return &passage{p[0], p[1]}, nil
}

func (p *passage) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// LetSourceLend makes the copier have what it may lent by the source. It comes before the first Put.
func (c *Copier) LetSourceLend(l Lender) {
	to, ok := c.dst.(Piped)
	if !ok || !to.Splices() {
		return
	}
	lend := &lending{from: l, to: to, free: make(chan *passage, 2)}
	for range cap(lend.free) {
		p, err := openPassage()
		if err != nil {
			lend.close()
			return
		}
		lend.free <- p
		lend.size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			lend.close()
			return
		}
	}
	lend.size = min(lend.size, passageSize)
	c.self, c.lend, c.moveSelf = l, lend, c.moveLent
}

func (l *lending) close() {
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
	if err == nil {
		c.stats.Self.Add(done / pageSize)
		err = c.rest(b.ranges, b.buffer(), done, func(part []byte, _ uint64) error {
			_, err := c.dst.Write(part)
			return err
		})
	}
	if err == nil {
		close(b.placed)
	}
	return err
}

// batch returns how many bytes were lent.
func (l *lending) batch(ranges []Range) (done uint64, err error) {
	full := make(chan lentFrame, cap(l.free))
	var emptied errgroup.Group
	emptied.Go(func() (failed error) {
		for f := range full {
			if failed == nil {
				failed = l.to.Splice(f.r, f.n, f.sum)
			}
			l.free <- f.passage
		}
		return failed
	})
	var broken error
	for len(ranges) > 0 {
		var part []Range
		var n int
		part, ranges, n = firstBytes(ranges, l.size)
		p := <-l.free
		sum, err := l.from.LendPages(p.w, part, l.to.Seed(n))
		if err != nil { // the caller does it otherwise
			p.close()
			if p, err = openPassage(); err != nil {
				broken = err
				break
			}
			l.free <- p
			break
		}
		full <- lentFrame{p, n, sum}
		done += uint64(n)
	}
	close(full)
	return done, errors.Join(broken, emptied.Wait())
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
