package iouring

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// fresh makes a ring of the test's own.
func fresh(t *testing.T, entries uint32, flags uint32) *Ring {
	p := &Params{Flags: flags, SQThreadIdle: 10}
	fd, err := Setup(entries, p)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip("no io_uring here: ", err)
	}
	if errors.Is(err, unix.EINVAL) && flags != 0 {
		t.Skip("this kernel has no such io_uring: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	r, err := Map(fd, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Unmap)
	return r
}

// TestWind leads rings to positions and has them go on from there.
func TestWind(t *testing.T) {
	for _, flags := range []uint32{0, NoSQArray, SQPoll, CQE32 | SQE128} {
		for _, c := range []struct{ sq, cq, unread uint32 }{
			{0, 0, 0}, {1, 1, 0}, {8, 8, 8}, {100, 100, 16}, {1000, 1000, 0}, {1000, 10, 3}, {10, 1000, 7}, {0, 5, 5}, {5, 0, 0}, {9, 3, 3},
		} {
			r := fresh(t, 8, flags)
			if err := r.Wind(t.Context(), c.sq, c.cq, c.unread); err != nil {
				t.Errorf("flags %#x, %+v: %v", flags, c, err)
				continue
			}
			if sq, cq, head := r.Load(r.SQ.Head), r.Load(r.CQ.Tail), r.Load(r.CQ.Head); sq != c.sq || cq != c.cq || head != c.cq-c.unread {
				t.Errorf("flags %#x, %+v: is at %d, %d, to be read from %d", flags, c, sq, cq, head)
			}
			free := r.CQEntries - c.unread
			for range free/r.SQEntries + 1 { // one more than there is room for: nothing unread is lost
				r.fillNops(0)
				head := r.Load(r.SQ.Head)
				r.Store(r.SQ.Tail, head+r.SQEntries)
				if err := r.submit(t.Context(), r.SQEntries, head+r.SQEntries); err != nil {
					t.Fatalf("flags %#x, %+v: %v", flags, c, err)
				}
			}
			if n := r.Load(r.CQ.Tail) - r.Load(r.CQ.Head); n != r.CQEntries {
				t.Errorf("flags %#x, %+v: %d unread completions of at most %d", flags, c, n, r.CQEntries)
			}
		}
	}
}

func TestFits(t *testing.T) {
	for _, flags := range []uint32{0, NoSQArray, CQE32, SQE128} {
		for _, entries := range []uint32{1, 64, 4096} {
			r := fresh(t, entries, flags)
			if !Fits(r.FD, r.Params) {
				t.Errorf("flags %#x: a ring of %d entries does not fit itself", flags, entries)
			}
			other := *r.Params
			if other.SQEntries *= 128; Fits(r.FD, &other) {
				t.Errorf("flags %#x: one of %d entries fits one of %d", flags, entries, other.SQEntries)
			}
		}
	}
}

func BenchmarkWind(b *testing.B) {
	p := &Params{}
	fd, err := Setup(256, p)
	if err != nil {
		b.Skip(err)
	}
	defer unix.Close(fd)
	r, err := Map(fd, p)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Unmap()
	if err := r.Wind(b.Context(), uint32(b.N), uint32(b.N), 0); err != nil {
		b.Fatal(err)
	}
}
