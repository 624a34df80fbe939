package objid

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFiles numbers descriptors: duplicates share a number, files opened twice do not, and the order of asking gives the
// numbers.
func TestFiles(t *testing.T) {
	var fds []int
	group := map[int]int{} // descriptor: which open file it is
	for i := range 40 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd := int(f.Fd())
		fds, group[fd] = append(fds, fd), i
		if i%3 == 0 {
			dup, err := unix.Dup(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(dup)
			fds, group[dup] = append(fds, dup), i
		}
	}
	rand.Shuffle(len(fds), func(i, j int) { fds[i], fds[j] = fds[j], fds[i] })
	alloc := NewAllocator()
	ids := map[int]uint32{}
	next := uint32(1)
	for _, fd := range fds {
		id, fresh, err := alloc.ID(File, Key{}, Ref{Pid: os.Getpid(), Index: fd})
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			t.Skipf("kcmp: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		known, seen := ids[group[fd]]
		switch {
		case fresh == seen:
			t.Errorf("descriptor %d of file %d: fresh %v", fd, group[fd], fresh)
		case seen && id != known:
			t.Errorf("descriptor %d of file %d has number %d, another has %d", fd, group[fd], id, known)
		case !seen && id != next:
			t.Errorf("descriptor %d has number %d, not %d", fd, id, next)
		}
		if !seen {
			ids[group[fd]] = id
			next++
		}
	}
}

// TestKeys shows that objects with different keys are never compared, and numbers are counted by type.
func TestKeys(t *testing.T) {
	alloc := NewAllocator()
	nobody := Ref{Pid: 1 << 29} // comparing it would fail
	for i := range uint32(3) {
		id, fresh, err := alloc.ID(File, Key{Ino: uint64(i)}, nobody)
		if id != i+1 || !fresh || err != nil {
			t.Errorf("got %d, %v, %v", id, fresh, err)
		}
	}
	if id := alloc.Fresh(File); id != 4 {
		t.Errorf("the next number is %d", id)
	}
	if id := alloc.Fresh(VM); id != 1 {
		t.Errorf("the first of another type is %d", id)
	}
	if _, _, err := alloc.ID(File, Key{}, nobody); err == nil {
		t.Error("a task that does not exist was compared")
	}
}

// TestHints numbers many descriptors of one file with hints of which some are wrong: only Settle finds that, if it is told.
func TestHints(t *testing.T) {
	alloc := NewAllocator()
	if _, _, err := alloc.ID(File, Key{}, Ref{Pid: os.Getpid(), Index: 0}); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("kcmp: %v", err)
	}
	first, dup := -1, -1
	for i := range many + 40 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, fresh, err := alloc.ID(File, Key{Ino: 1}, Ref{Pid: os.Getpid(), Index: int(f.Fd()), Hint: uint64(i + 1)}); err != nil || !fresh {
			t.Fatalf("file %d: fresh %v, %v", i, fresh, err)
		}
		if first < 0 {
			first = int(f.Fd())
		}
	}
	dup, err := unix.Dup(first)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	number := func(hint uint64, want bool) {
		t.Helper()
		if _, fresh, err := alloc.ID(File, Key{Ino: 1}, Ref{Pid: os.Getpid(), Index: dup, Hint: hint}); err != nil || fresh != want {
			t.Errorf("with hint %d: fresh %v, %v", hint, fresh, err)
		}
	}
	number(1, false)
	number(0, false)
	if !alloc.Guessed(File, Key{Ino: 1}) || alloc.Guessed(File, Key{}) {
		t.Error("it does not know where it guesses")
	}
	alloc.Doubt(File, Key{Ino: 1})
	if err := alloc.Settle(); err != nil {
		t.Error(err)
	}
	number(7, true)
	if err := alloc.Settle(); err == nil {
		t.Error("one file has two numbers")
	}
}
