package pagecopy

import (
	"os"

	"cryo/internal/image"
)

// Self is a source that can write its pages into a file by itself, which moves them once and takes half the processor
// time of reading and writing.
type Self interface {
	// Ready says whether it can and may. It is asked when there is enough to write to be worth it.
	Ready() bool
	// Dense says whether it is worth while to write the range without looking at every page: few of its pages, if
	// any, are zero.
	Dense(addr, n uint64) bool
	// WritePages writes the ranges at off in f and returns how many bytes it managed. What is missing is read and
	// written by the copier, which then meets the trouble there was, if it is still there.
	WritePages(f *os.File, ranges []Range, off int64) int64
}

const (
	selfWindow = 1 << 20  // what Dense is asked of at a time; smaller ranges are not worth a program
	selfBatch  = 16 << 20 // bytes at a time: some 8 ms, which is how long the task goes on writing if the tool dies
)

// LetSourceWrite makes the copier leave to the source what it may. It comes before the first Put.
func (c *Copier) LetSourceWrite(s Self) {
	if c.file != nil {
		c.self = s
	}
}

// cut decides who writes the beginning of r, and how long that is.
func (c *Copier) cut(r Range) (n uint64, self bool) {
	if c.self == nil || r.Force || r.Absent || r.Len < selfWindow || !c.self.Ready() {
		return r.Len, false
	}
	self = r.KeepZero || c.self.Dense(r.Addr, selfWindow)
	for n = selfWindow; r.Len-n >= selfWindow; n += selfWindow {
		if (r.KeepZero || c.self.Dense(r.Addr+n, selfWindow)) != self {
			return n, self
		}
	}
	if !self {
		n = r.Len
	}
	return n, self
}

// moveSelf announces a batch, lets the source write it, and writes what that did not.
func (c *Copier) moveSelf(b *batch) error {
	if err := c.await(b); err != nil {
		return err
	}
	for _, r := range b.ranges {
		if err := c.dst.Add(r.Addr, r.Len/pageSize, r.Flags|image.PEPresent); err != nil {
			return err
		}
	}
	off := c.dst.Reserve(int64(b.bytes))
	close(b.placed)
	c.stats.Written.Add(uint64(b.bytes / pageSize))
	done := uint64(c.self.WritePages(c.file, b.ranges, off)) &^ (pageSize - 1)
	c.stats.Self.Add(done / pageSize)
	return c.rest(b, done, off)
}

// rest copies the ranges of a batch whose place is at off, without their first bytes.
func (c *Copier) rest(b *batch, done uint64, off int64) error {
	buf := b.buffer()
	for _, r := range b.ranges {
		skip := min(done, r.Len)
		done -= skip
		off += int64(skip)
		for at := skip; at < r.Len; {
			n := min(r.Len-at, uint64(len(buf)))
			part := [1]Range{{Addr: r.Addr + at, Len: n}}
			if err := c.src.ReadPages(part[:], buf[:n]); err != nil {
				return err
			}
			if err := writeAll(c.file, [][]byte{buf[:n]}, off); err != nil {
				return err
			}
			at, off = at+n, off+int64(n)
		}
	}
	return nil
}
