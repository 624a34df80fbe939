package pagecopy

import (
	"bytes"
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeSelf stands for a task that writes by itself: through this process, as many bytes of each batch as told.
type fakeSelf struct {
	*Task
	most int64
}

func (s fakeSelf) Ready() bool { return true }

func (s fakeSelf) WritePages(f *os.File, ranges []Range, off int64) int64 {
	var done int64
	for _, r := range ranges {
		buf := make([]byte, r.Len)
		if s.ReadPages([]Range{r}, buf) != nil {
			return done
		}
		n, _ := unix.Pwrite(int(f.Fd()), buf[:min(int64(len(buf)), s.most-done)], off+done)
		if done += int64(n); done == s.most {
			return done
		}
	}
	return done
}

// TestSourceWrites lets a source write all, nothing, or a part of what it was given.
func TestSourceWrites(t *testing.T) {
	const size = 9 << 20
	for _, pattern := range []string{"dirty", "zero"} {
		pid, addr := startTarget(t, pattern, size)
		src := NewTask(pid)
		defer src.Close()
		want := make([]byte, size)
		fill(want[:pageSize], 0)
		for off := 0; off < size; off += pageSize {
			fill(want[off:off+pageSize], uint64(off))
		}
		for _, most := range []int64{1 << 40, 0, 5<<20 + 7} {
			dst := &memDest{f: tempFile(t, t.TempDir())}
			var stats Stats
			c := New(context.Background(), src, dst, 2, &stats)
			c.LetSourceWrite(fakeSelf{src, most})
			for _, r := range []Range{{Addr: addr, Len: 3 * pageSize}, {Addr: addr + 3*pageSize, Len: size - 3*pageSize}} {
				if err := c.Put(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if pattern == "zero" {
				if n := stats.Written.Load(); n != 0 {
					t.Errorf("%d pages of zeros stored", n)
				}
				continue
			}
			if !bytes.Equal(dst.content(t), want) {
				t.Errorf("at most %d bytes by the source: the file differs", most)
			}
			if self := stats.Self.Load() * pageSize; self > uint64(most) || most > size && self == 0 {
				t.Errorf("%d bytes by the source, of at most %d", self, most)
			}
		}
	}
}
