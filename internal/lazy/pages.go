package lazy

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"cryo/internal/image"
)

// Pages is where the late pages of one task come from, by the addresses they were dumped at.
type Pages interface {
	// Late lists what is to come, ascending.
	Late() []Range
	// Fetch gets n bytes from addr on, all of them late, and gives them to deliver in one or more parts, now or later and
	// on any goroutine. The bytes are deliver's for the time of the call.
	Fetch(addr, n uint64, deliver Deliver) error
	// Close gives back what it holds.
	Close() error
}

// Deliver takes pages dumped at addr.
type Deliver func(addr uint64, b []byte) error

// extent is a stretch of late pages in a pages file.
type extent struct {
	addr, end uint64
	file      *image.Pages
	off       int64
}

// Local is the pages of a task that are in an image set on this machine.
type Local struct {
	kind    image.PagemapKind
	extents []extent
	files   []*image.Pages
	depth   int // of tasks whose parents are being read
}

// OpenLocal reads the page map of a task. Late pages that the set has not, because they were left behind where they were
// dumped, are an error.
func OpenLocal(src image.Source, pid int) (*Local, error) {
	return openLocal(src, image.TaskPages, uint64(pid), func(r image.Run) bool { return r.Flags&image.PELazy != 0 })
}

// OpenStored reads the page map of any object: Late is all that the set, or one it builds on, has stored of it.
func OpenStored(src image.Source, kind image.PagemapKind, id uint64) (*Local, error) {
	return openLocal(src, kind, id, func(r image.Run) bool { return r.Flags&(image.PEPresent|image.PEParent) != 0 })
}

func openLocal(src image.Source, kind image.PagemapKind, id uint64, want func(image.Run) bool) (*Local, error) {
	l := &Local{kind: kind}
	all, err := l.read(src, id, want)
	if err != nil {
		l.Close()
		return nil, err
	}
	l.extents = all
	return l, nil
}

// read lists the pages of those runs of a page map that are wanted, looking into parents where the map says so.
func (l *Local) read(src image.Source, id uint64, want func(image.Run) bool) ([]extent, error) {
	m, err := image.ReadPagemap(src, l.kind, id)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	name := l.kind.Kind().File(id)
	var list, below, shared []extent
	var file *image.Pages
	off := int64(0)
	for run, err := range m.Runs() {
		if err != nil {
			return nil, err
		}
		switch {
		case run.Flags&image.PEShared != 0:
			if !want(run) {
				continue
			}
			if shared == nil {
				if shared, err = l.readOwner(src, id); err != nil {
					return nil, fmt.Errorf("image %s: pages %x-%x are those of the parent task: %w", name, run.Addr, run.End(), err)
				}
			}
			list = append(list, within(shared, run.Addr, run.End())...)
		case run.Flags&image.PEParent != 0:
			if !want(run) {
				continue
			}
			if below == nil {
				if below, err = l.readParent(src, id); err != nil {
					return nil, fmt.Errorf("image %s: pages %x-%x are in the parent set: %w", name, run.Addr, run.End(), err)
				}
			}
			part, err := cut(below, run.Addr, run.End())
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", name, err)
			}
			list = append(list, part...)
		case run.Flags&image.PEPresent != 0:
			if file == nil {
				if file, err = l.open(src, m.PagesID); err != nil {
					return nil, err
				}
			}
			if size := file.Size; int64(run.Bytes()) > size-off {
				return nil, fmt.Errorf("image %s: pages %x-%x are past the end of %s, which has %d bytes", name, run.Addr, run.End(), image.PagesFile(m.PagesID), size)
			}
			if want(run) {
				list = append(list, extent{run.Addr, run.End(), file, off})
			}
			off += int64(run.Bytes())
		case want(run):
			return nil, fmt.Errorf("image %s: pages %x-%x were left where they were dumped: name that page server with --page-server --address --port", name, run.Addr, run.End())
		}
	}
	return list, nil
}

func (l *Local) readParent(src image.Source, id uint64) ([]extent, error) {
	up, err := src.Parent()
	if err == nil && up == nil {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, err
	}
	defer up.Close()
	return l.read(up, id, func(image.Run) bool { return true })
}

// readOwner reads all pages of the parent of a task.
func (l *Local) readOwner(src image.Source, id uint64) ([]extent, error) {
	tasks, err := image.ReadAll(src, image.Pstree, 0)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if uint64(t.GetPid()) == id && t.GetPpid() != 0 && uint64(t.GetPpid()) != id {
			if l.depth++; l.depth > len(tasks) {
				return nil, errors.New("the tasks are their own ancestors")
			}
			defer func() { l.depth-- }()
			list, err := l.read(src, uint64(t.GetPpid()), func(image.Run) bool { return true })
			if list == nil {
				list = []extent{}
			}
			return list, err
		}
	}
	return nil, errors.New("it is not in the set")
}

// within returns what of a list lies between two addresses; pages that are not in it are zeros.
func within(list []extent, start, end uint64) []extent {
	var part []extent
	for i := sort.Search(len(list), func(i int) bool { return list[i].end > start }); i < len(list) && list[i].addr < end; i++ {
		e := list[i]
		from, to := max(e.addr, start), min(e.end, end)
		part = append(part, extent{from, to, e.file, e.off + int64(from-e.addr)})
	}
	return part
}

// cut returns what of a list lies between two addresses, all of which must be in it.
func cut(list []extent, start, end uint64) ([]extent, error) {
	var part []extent
	for i := sort.Search(len(list), func(i int) bool { return list[i].end > start }); start < end; i++ {
		if i == len(list) || list[i].addr > start {
			return nil, fmt.Errorf("page %x is in no parent set", start)
		}
		e := list[i]
		stop := min(e.end, end)
		part = append(part, extent{start, stop, e.file, e.off + int64(start-e.addr)})
		start = stop
	}
	return part, nil
}

func (l *Local) open(src image.Source, id uint32) (*image.Pages, error) {
	p, err := src.OpenPages(id)
	if err != nil {
		return nil, err
	}
	l.files = append(l.files, p)
	return p, nil
}

// Late implements Pages.
func (l *Local) Late() []Range {
	var list []Range
	for _, e := range l.extents {
		if n := len(list); n > 0 && list[n-1].End == e.addr {
			list[n-1].End = e.end
			continue
		}
		list = append(list, Range{e.addr, e.end})
	}
	return list
}

// Fetch implements Pages. It delivers before it returns.
func (l *Local) Fetch(addr, n uint64, deliver Deliver) error {
	end := addr + n
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for i := sort.Search(len(l.extents), func(i int) bool { return l.extents[i].end > addr }); addr < end; i++ {
		if i == len(l.extents) || l.extents[i].addr > addr {
			return fmt.Errorf("page %x is in no image", addr)
		}
		e := &l.extents[i]
		for stop := min(e.end, end); addr < stop; {
			b := (*buf)[:min(stop-addr, chunk)]
			if err := readPages(e.file, b, e.off+int64(addr-e.addr)); err != nil {
				return err
			}
			if err := deliver(addr, b); err != nil {
				return err
			}
			addr += uint64(len(b))
		}
	}
	return nil
}

// buffers are what pages are read into, each of a chunk. That they stay in a processor's cache makes the second copy a cheap
// one: pages are in no later than they would be from mapped files, which cost a fault every few pages and, when they are
// unmapped, an interrupt of all processors.
var buffers = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

func readPages(f *image.Pages, b []byte, off int64) error {
	_, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

// Close implements Pages.
func (l *Local) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
