package pagecopy

import "os"

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

// willing is a source that may do with its pages by itself what the copier is there for: a Self, a Lender or a Sender.
type willing interface {
	Ready() bool
	Dense(addr, n uint64) bool
}

// LetSourceWrite makes the copier leave to the source what it may. It comes before the first Put.
func (c *Copier) LetSourceWrite(s Self) {
	if c.file != nil {
		c.self, c.selfBatch, c.moveSelf = s, selfBatch, func(b *batch) error { return c.moveWritten(b, s) }
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

// moveWritten announces a batch, lets the source write it, and writes what that did not.
func (c *Copier) moveWritten(b *batch, s Self) error {
	if err := c.announceSelf(b); err != nil {
		return err
	}
	off := c.dst.Reserve(int64(b.bytes))
	close(b.placed)
	done := uint64(s.WritePages(c.file, b.ranges, off)) &^ (pageSize - 1)
	c.stats.Self.Add(done / pageSize)
	return c.rest(b.ranges, b.buffer(), done, func(part []byte, at uint64) error { return writeAll(c.file, [][]byte{part}, off+int64(at)) })
}

// rest reads ranges without their first bytes into a buffer, and has each piece written, which is told how far it is from the
// beginning of the ranges.
func (c *Copier) rest(ranges []Range, buf []byte, done uint64, write func(part []byte, at uint64) error) error {
	place := uint64(0)
	for _, r := range ranges {
		skip := min(done, r.Len)
		done -= skip
		place += skip
		for at := skip; at < r.Len; {
			n := min(r.Len-at, uint64(len(buf)))
			part := [1]Range{{Addr: r.Addr + at, Len: n}}
			if err := c.src.ReadPages(part[:], buf[:n]); err != nil {
				return err
			}
			if err := write(buf[:n], place); err != nil {
				return err
			}
			at, place = at+n, place+n
		}
	}
	return nil
}
