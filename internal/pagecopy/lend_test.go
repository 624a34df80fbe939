package pagecopy

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// pipeDest is a destination that pages can be moved into, and checks what it is told.
type pipeDest struct {
	memDest
	t     *testing.T
	calls uint32
}

func (d *pipeDest) Splices() bool     { return true }
func (d *pipeDest) Seed(n int) uint32 { return uint32(n) }

func (d *pipeDest) Splice(pipe, n int, sum uint32) error {
	b := make([]byte, n)
	for at := 0; at < n; {
		got, err := unix.Read(pipe, b[at:])
		if err != nil {
			return err
		}
		at += got
	}
	if d.calls++; sum != uint32(n)+1 {
		d.t.Errorf("%d bytes came with %d", n, sum)
	}
	_, err := d.Write(b)
	return err
}

// fakeLender stands for a task that lends its pages: it writes them itself, as often as told, and then fails half-way.
type fakeLender struct {
	*Task
	most *int
}

func (l fakeLender) Ready() bool { return true }

func (l fakeLender) LendPages(lots []Lot) error {
	for i := range lots {
		var n uint64
		for _, r := range lots[i].Ranges {
			n += r.Len
		}
		buf := make([]byte, n)
		if err := l.ReadPages(lots[i].Ranges, buf); err != nil {
			return err
		}
		if *l.most--; *l.most < 0 {
			unix.Write(lots[i].Pipe(), buf[:pageSize])
			return errors.New("no more")
		}
		if _, err := unix.Write(lots[i].Pipe(), buf); err != nil {
			return err
		}
		lots[i].Sum++
	}
	return nil
}

// TestSourceLends has a source lend all, nothing, or a part of what it is asked for.
func TestSourceLends(t *testing.T) {
	const size = 21 << 20
	pid, addr := startTarget(t, "dirty", size)
	src := NewTask(pid)
	defer src.Close()
	want := make([]byte, size)
	for off := 0; off < size; off += pageSize {
		fill(want[off:off+pageSize], uint64(off))
	}
	for _, most := range []int{1 << 20, 0, 3, 6} {
		dst := &pipeDest{t: t}
		left := most
		var stats Stats
		c := New(context.Background(), src, dst, 2, &stats)
		c.LetSourceLend(fakeLender{src, &left})
		for _, r := range []Range{{Addr: addr, Len: 3 * pageSize}, {Addr: addr + 3*pageSize, Len: 2<<20 + 5*pageSize}, {Addr: addr + 2<<20 + 8*pageSize, Len: size - 2<<20 - 8*pageSize}} {
			if err := c.Put(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.content(t), want) {
			t.Errorf("lent at most %d times: what came differs", most)
		}
		if lent := stats.Self.Load(); (lent > 0) != (dst.calls > 0) || most > 4 && lent == 0 || lent > size/pageSize {
			t.Errorf("%d pages lent by %d calls, of at most %d", lent, dst.calls, most)
		}
	}
}

// TestFirstBytes divides lists of ranges.
func TestFirstBytes(t *testing.T) {
	list := []Range{{Addr: 0x1000, Len: 100}, {Addr: 0x2000, Len: 50}, {Addr: 0x3000, Len: 25}}
	for n := 1; n <= 200; n++ {
		var got []Range
		for rest := list; len(rest) > 0; {
			first, left, have := firstBytes(rest, n)
			size := 0
			for _, r := range first {
				size += int(r.Len)
			}
			if size != have || have > n || have < n && len(left) > 0 {
				t.Fatalf("%d of %v: %v, which are %d", n, rest, first, have)
			}
			got, rest = append(got, first...), left
		}
		at, addr := 0, uint64(0)
		for _, r := range got {
			for _, of := range list {
				if r.Addr >= of.Addr && r.Addr < of.Addr+of.Len && (addr > r.Addr || r.Addr+r.Len > of.Addr+of.Len) {
					t.Fatalf("%d at a time: %v", n, got)
				}
			}
			at, addr = at+int(r.Len), r.Addr+r.Len
		}
		if at != 175 {
			t.Fatalf("%d at a time: %d bytes", n, at)
		}
	}
}
