package restorers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"cryo/internal/image"
)

// pageRun is a stretch of memory whose bytes are in a pages file.
type pageRun struct {
	Start, End uint64
	file       *pagesFile
	off        int64 // of the first byte in the file
}

// pageStream goes over the pages of one page map in ascending order, those in parent sets included. It holds one run a
// set, whatever the size of the map.
type pageStream struct {
	name   string
	maps   *image.PagemapReader // nil when the page map is known
	known  []image.Run          // what is left of it
	pages  uint32               // id of the pages file
	shared *SharedPages         // where pages files come from; nil: the stream's own
	last   bool                 // nobody reads these pages afterwards
	src    image.Source         // closed with the stream when it is a parent
	file   *pagesFile
	lent   bool // file is shared
	off    int64
	below  *pageStream // the same page map in the parent set; opened when needed
	kind   image.PagemapKind
	id     uint64
	late   func(Range) // told of pages that come late, which are left out; nil: none do
	run    pageRun     // not handed out yet, empty when Start == End
	parent Range       // to be looked up in the parent set
	cow    Range       // to be looked up in the page map of the parent task
	owners Owners
	task   *pageStream // that page map; opened when needed
	done   bool
}

// Owners tells the parent of each task, whose pages it may share; see image.PEShared.
type Owners map[uint64]uint64

// Pagemap is a page map that has been read and is small enough to be kept.
type Pagemap struct {
	PagesID uint32
	Runs    []image.Run
}

// maxKnown is how many runs a page map has that is kept. Those of most tasks of large trees are smaller.
const maxKnown = 128

// openKnown is openPages for a page map that may be known.
func openKnown(src image.Source, kind image.PagemapKind, id uint64, known *Pagemap) (*pageStream, error) {
	if known == nil {
		return openPages(src, kind, id)
	}
	return &pageStream{name: kind.Kind().File(id), src: src, kind: kind, id: id, known: known.Runs, pages: known.PagesID}, nil
}

// SharedPages keeps small pages files open and in memory for several who read them at the same time: every forked task
// compares with those of its forker.
type SharedPages struct {
	src   image.Source
	mu    sync.Mutex
	files map[uint32]*pagesFile
}

// NewSharedPages starts with no file.
func NewSharedPages(src image.Source) *SharedPages {
	return &SharedPages{src: src, files: map[uint32]*pagesFile{}}
}

// open returns a pages file, and whether it is shared and not to be closed.
func (p *SharedPages) open(id uint32) (*pagesFile, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[id]; f != nil {
		return f, true, nil
	}
	f, err := openPagesFile(p.src, id)
	if err != nil || f.Size > smallPages || f.Size == 0 {
		return f, false, err
	}
	if err := f.read(); err != nil {
		f.Close()
		return nil, false, err
	}
	p.files[id] = f
	return f, true, nil
}

// Close closes all files.
func (p *SharedPages) Close() {
	for _, f := range p.files {
		f.Close()
	}
}

// openPages starts going over a page map. A map that does not exist has no pages.
func openPages(src image.Source, kind image.PagemapKind, id uint64) (*pageStream, error) {
	s := &pageStream{name: kind.Kind().File(id), src: src, kind: kind, id: id}
	maps, err := image.ReadPagemap(src, kind, id)
	if errors.Is(err, fs.ErrNotExist) {
		s.done = true
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.maps, s.pages = maps, maps.PagesID
	return s, nil
}

// Close closes the files.
func (s *pageStream) Close() {
	if s.maps != nil {
		s.maps.Close()
	}
	if s.file != nil && !s.lent {
		s.file.Close()
	}
	if s.below != nil {
		s.below.Close()
		s.below.src.Close()
	}
	if s.task != nil {
		s.task.Close()
	}
}

// release gives back what the pages files take in memory, those of parent sets too.
func (s *pageStream) release() {
	if s.file != nil && !s.lent {
		s.file.Release(0, s.file.Size)
	}
	if s.below != nil {
		s.below.release()
	}
}

// from returns the first run that ends after addr, cut so that it does not begin before addr; ok is false when there is
// none. addr never goes back.
func (s *pageStream) from(addr uint64) (r pageRun, ok bool, err error) {
	for {
		if s.parent.End > max(addr, s.parent.Start) {
			if r, ok, err := s.fromParent(max(addr, s.parent.Start)); ok || err != nil {
				return r, ok, err
			}
		}
		if s.cow.End > max(addr, s.cow.Start) {
			if r, ok, err := s.fromTask(max(addr, s.cow.Start)); ok || err != nil {
				return r, ok, err
			}
			s.cow = Range{} // the rest of it is zeros
		}
		if s.run.End > addr && s.run.End > s.run.Start {
			r := s.run
			if addr > r.Start {
				r.off += int64(addr - r.Start)
				r.Start = addr
			}
			return r, true, nil
		}
		if s.done {
			return pageRun{}, false, nil
		}
		if err := s.next(); err != nil {
			return pageRun{}, false, err
		}
	}
}

// next reads one entry of the page map.
func (s *pageStream) next() error {
	run, err := s.entry()
	if err == io.EOF {
		s.done = true
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case s.late != nil && run.Flags&image.PELazy != 0:
		if run.Flags&image.PEPresent != 0 {
			s.off += int64(run.Bytes())
		}
		s.late(Range{run.Addr, run.End()})
	case run.Flags&image.PEShared != 0:
		s.cow = Range{run.Addr, run.End()}
	case run.Flags&image.PEParent != 0:
		s.parent = Range{run.Addr, run.End()}
	case run.Flags&image.PEPresent != 0:
		if s.file == nil {
			if err := s.openFile(); err != nil {
				return err
			}
		}
		if size := s.file.Size; int64(run.Bytes()) > size-s.off {
			return fmt.Errorf("image %s: pages %x-%x are past the end of %s, which has %d bytes", s.name, run.Addr, run.End(), image.PagesFile(s.pages), size)
		}
		s.run = pageRun{run.Addr, run.End(), s.file, s.off}
		s.off += int64(run.Bytes())
	}
	return nil
}

// entry is the next entry of the page map, io.EOF after the last.
func (s *pageStream) entry() (image.Run, error) {
	if s.maps != nil {
		return s.maps.Next()
	}
	if len(s.known) == 0 {
		return image.Run{}, io.EOF
	}
	run := s.known[0]
	s.known = s.known[1:]
	return run, nil
}

func (s *pageStream) openFile() (err error) {
	if s.shared != nil {
		s.file, s.lent, err = s.shared.open(s.pages)
	} else {
		if s.file, err = openPagesFile(s.src, s.pages); err == nil {
			s.file.last = s.last
		}
	}
	return err
}

// fromParent is from for the range that the page map says is in the parent set.
func (s *pageStream) fromParent(addr uint64) (pageRun, bool, error) {
	if s.below == nil {
		up, err := s.src.Parent()
		if err == nil && up == nil {
			err = errors.New("there is none")
		}
		if err != nil {
			return pageRun{}, false, fmt.Errorf("image %s: pages %x-%x are in the parent set: %w", s.name, s.parent.Start, s.parent.End, err)
		}
		if s.below, err = openPages(up, s.kind, s.id); err != nil {
			return pageRun{}, false, err
		}
		s.below.owners, s.below.last = s.owners, s.last
	}
	r, ok, err := s.below.from(addr)
	if err != nil {
		return r, false, err
	}
	if !ok || r.Start > addr {
		return r, false, fmt.Errorf("image %s: page %x is in no parent set", s.name, addr)
	}
	r.End = min(r.End, s.parent.End)
	return r, true, nil
}

// fromTask is from for the range that the page map says is shared with the parent task; ok is false when that has no more
// pages in it.
func (s *pageStream) fromTask(addr uint64) (pageRun, bool, error) {
	if s.task == nil {
		owner := s.owners[s.id]
		if owner == 0 {
			return pageRun{}, false, fmt.Errorf("image %s: pages %x-%x are shared with a parent task, which is not in the set", s.name, s.cow.Start, s.cow.End)
		}
		var err error
		if s.task, err = openPages(s.src, s.kind, owner); err != nil {
			return pageRun{}, false, err
		}
		s.task.owners = s.owners
	}
	r, ok, err := s.task.from(addr)
	if !ok || err != nil || r.Start >= s.cow.End {
		return r, false, err
	}
	r.End = min(r.End, s.cow.End)
	return r, true, nil
}

// same says whether two runs that begin at the same address are the same bytes for certain.
func (r pageRun) same(other pageRun) bool {
	return r.file.src == other.file.src && r.file.id == other.file.id && r.off == other.off
}

// pagesFile reads a pages file through a window.
type pagesFile struct {
	*image.Pages
	src    image.Source
	id     uint32
	window image.Window
	small  *[]byte // the whole file is the window
	at     int64   // offset of the window in the file
	last   bool    // nobody reads a window again when the next one is there
}

// smallPages is the size up to which a file is read and not mapped: taking a mapping back interrupts all processors the
// tool runs on, which costs more than the copy.
const smallPages = 256 << 10

var smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallPages); return &b }}

// windowSize is a compromise between system calls and memory.
const windowSize = 8 << 20

func openPagesFile(src image.Source, id uint32) (*pagesFile, error) {
	p, err := src.OpenPages(id)
	if err != nil {
		return nil, err
	}
	return &pagesFile{Pages: p, src: src, id: id}, nil
}

// bytes returns up to n bytes at off: as many as the window that holds off has. They are valid until the next call.
func (f *pagesFile) bytes(off int64, n uint64) ([]byte, error) {
	if off < f.at || off >= f.at+int64(len(f.window.Bytes)) {
		f.unmap()
		if f.Size <= smallPages {
			if err := f.read(); err != nil {
				return nil, err
			}
			return f.bytes(off, n)
		}
		start := off &^ (windowSize - 1)
		w, err := f.Window(start, min(windowSize, f.Size-start))
		if err != nil {
			return nil, err
		}
		f.window, f.at = w, start
	}
	b := f.window.Bytes[off-f.at:]
	return b[:min(uint64(len(b)), n)], nil
}

// read makes a copy of the whole file the window.
func (f *pagesFile) read() error {
	f.small = smallBuffers.Get().(*[]byte)
	f.window, f.at = image.Window{Bytes: (*f.small)[:f.Size]}, 0
	if _, err := f.ReadAt(f.window.Bytes, 0); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

func (f *pagesFile) unmap() {
	n := int64(len(f.window.Bytes))
	if f.small != nil {
		smallBuffers.Put(f.small)
		f.small = nil
	} else {
		f.window.Close()
	}
	if f.last && n > 0 {
		f.Release(f.at, n)
	}
	f.window = image.Window{}
}

// Close closes the file.
func (f *pagesFile) Close() error {
	f.unmap()
	return f.Pages.Close()
}
