package pagecopy

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"
)

// sentDest is a socket.
type sentDest struct {
	memDest
	sent int64
}

type nowhere struct{}

func (nowhere) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOTSUP }

func (d *sentDest) Socket() syscall.Conn { return nowhere{} }
func (d *sentDest) Flush() error         { return nil }
func (d *sentDest) Advance(n int64)      { d.sent += n }

// fakeSender stands for a task that sends by itself: as many bytes of each range as told, -1 for an error.
type fakeSender struct {
	*Task
	to   *sentDest
	most int64
}

func (s fakeSender) Ready() bool { return true }

func (s fakeSender) SendPages(_ context.Context, _ syscall.Conn, r Range) (int64, error) {
	if s.most < 0 {
		return 0, errors.New("unknown how many")
	}
	buf := make([]byte, r.Len)
	if err := s.ReadPages([]Range{r}, buf); err != nil {
		return 0, err
	}
	n, err := s.to.buf.Write(buf[:min(int64(len(buf)), s.most)])
	return int64(n), err
}

// TestSourceSends lets a source send all, nothing, or a part of each range it was given.
func TestSourceSends(t *testing.T) {
	const size = 37 << 20
	pid, addr := startTarget(t, "dirty", size)
	src := NewTask(pid)
	defer src.Close()
	want := make([]byte, size)
	for off := 0; off < size; off += pageSize {
		fill(want[off:off+pageSize], uint64(off))
	}
	for _, most := range []int64{1 << 40, 0, 5<<20 + 7, 1, -1} {
		dst := &sentDest{}
		var stats Stats
		c := New(context.Background(), src, dst, 2, &stats)
		c.LetSourceSend(fakeSender{src, dst, most})
		var err error
		for _, r := range []Range{{Addr: addr, Len: 3 * pageSize}, {Addr: addr + 3*pageSize, Len: size - 3*pageSize}} {
			if err = c.Put(r); err != nil {
				break
			}
		}
		if cerr := c.Close(); cerr != nil {
			err = cerr
		}
		if most < 0 {
			if err == nil {
				t.Error("a source that does not know what it has sent: no error")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.content(t), want) {
			t.Errorf("at most %d bytes of a range by the source: the content differs", most)
		}
		if self := stats.Self.Load() * pageSize; self > uint64(dst.sent) || most > size && self == 0 {
			t.Errorf("%d bytes by the source, which has sent %d", self, dst.sent)
		}
		if got := stats.Written.Load(); got != size/pageSize {
			t.Errorf("%d pages were written, want %d", got, size/pageSize)
		}
	}
}
