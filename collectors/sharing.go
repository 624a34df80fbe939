package collectors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/image"
	"cryo/internal/pagecopy"
)

// sharing tells which pages two tasks share: those that are in the same frame at the same address. Frame numbers are in
// /proc/PID/pagemap for CAP_SYS_ADMIN; without it all are 0, and nothing seems shared. While the kernel moves pages about, as
// it does to make room for large ones, frames differ for a moment; so where most pages are shared the others are compared.
type sharing struct {
	task, parent *os.File
	a, b, c      []byte // entries: the parent's, the task's, the parent's again
	mem          [2]*pagecopy.Task
	pages        [2][]byte
	shared       []bool // of the window
	found        []pagecopy.Range
}

// sharingWindow is how many pages are looked at at a time.
const sharingWindow = 8192

func openSharing(pid, parent int) (*sharing, error) {
	s := &sharing{}
	var err error
	if s.task, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)); err != nil {
		return nil, err
	}
	if s.parent, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", parent)); err != nil {
		s.task.Close()
		return nil, err
	}
	for _, b := range []*[]byte{&s.a, &s.b, &s.c} {
		*b = make([]byte, 8*sharingWindow)
	}
	s.shared = make([]bool, sharingWindow)
	s.mem = [2]*pagecopy.Task{pagecopy.NewTask(pid), pagecopy.NewTask(parent)}
	s.pages = [2][]byte{make([]byte, comparedPages*image.PageSize), make([]byte, comparedPages*image.PageSize)}
	return s, nil
}

// Close closes the files.
func (s *sharing) Close() error {
	return errors.Join(s.task.Close(), s.parent.Close(), s.mem[0].Close(), s.mem[1].Close())
}

// look finds the shared pages between two addresses, which ascend from call to call.
func (s *sharing) look(start, end uint64) error {
	for start < end {
		n := int(min(end-start, sharingWindow*image.PageSize) / image.PageSize)
		if err := s.window(start, n); err != nil {
			return err
		}
		for i := range n {
			addr := start + uint64(i)*image.PageSize
			last := len(s.found) - 1
			switch {
			case !s.shared[i]:
			case last >= 0 && s.found[last].Addr+s.found[last].Len == addr:
				s.found[last].Len += image.PageSize
			default:
				s.found = append(s.found, pagecopy.Range{Addr: addr, Len: image.PageSize})
			}
		}
		start += uint64(n) * image.PageSize
	}
	return nil
}

// window finds out which of the n pages from addr on are shared.
func (s *sharing) window(addr uint64, n int) error {
	if err := s.read(addr, n); err != nil {
		return err
	}
	count := 0
	for i := range n {
		if s.shared[i] = s.same(i); s.shared[i] {
			count++
		}
	}
	if count < n/2 {
		return nil
	}
	for i := 0; i < n; i++ {
		if s.shared[i] || !s.there(i) {
			continue
		}
		first := i
		for i++; i < n && i-first < comparedPages && !s.shared[i] && s.there(i); i++ {
		}
		if err := s.compare(addr, first, i-first); err != nil {
			return err
		}
	}
	return nil
}

// comparedPages is how many pages are compared at a time.
const comparedPages = 64

// compare finds out which pages of the window hold the same bytes, and takes those for shared, as a restore would.
func (s *sharing) compare(addr uint64, first, n int) error {
	size := n * image.PageSize
	for i, mem := range s.mem {
		part := pagecopy.Range{Addr: addr + uint64(first)*image.PageSize, Len: uint64(size), Force: true}
		if err := mem.ReadPages([]pagecopy.Range{part}, s.pages[i][:size]); err != nil {
			return err
		}
	}
	for i := range n {
		at := i * image.PageSize
		s.shared[first+i] = bytes.Equal(s.pages[0][at:at+image.PageSize], s.pages[1][at:at+image.PageSize])
	}
	return nil
}

// there says whether both tasks have page i, if not at once then in a moment.
func (s *sharing) there(i int) bool {
	const somewhere = 3 << 62 // present or swapped, which a page that is being moved looks like
	return entry(s.a, i)&somewhere != 0 && entry(s.b, i)&somewhere != 0
}

// read reads the entries of n pages. The parent's are read before and after the task's: the kernel may move pages meanwhile,
// and give a frame that was the parent's to the task.
func (s *sharing) read(addr uint64, n int) error {
	off := int64(addr / image.PageSize * 8)
	for _, from := range []struct {
		f *os.File
		b []byte
	}{{s.parent, s.a}, {s.task, s.b}, {s.parent, s.c}} {
		clear(from.b[:8*n])
		if _, err := from.f.ReadAt(from.b[:8*n], off); err != nil && err != io.EOF {
			return fmt.Errorf("%s: %w", from.f.Name(), err)
		}
	}
	return nil
}

// same says whether page i is shared: present in the same frame, swapped out in neither.
func (s *sharing) same(i int) bool {
	const present, frame = 1 << 63, 1<<55 - 1
	a, b, c := entry(s.a, i), entry(s.b, i), entry(s.c, i)
	return a&present != 0 && b&present != 0 && c&present != 0 && a&frame != 0 && a&frame == b&frame && a&frame == c&frame
}

func entry(b []byte, i int) uint64 { return binary.NativeEndian.Uint64(b[8*i:]) }
