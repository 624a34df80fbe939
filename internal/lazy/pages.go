package lazy

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
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
	file      *pagesFile
	off       int64
}

// Local is the pages of a task that are in an image set on this machine.
type Local struct {
	kind    image.PagemapKind
	extents []extent
	files   []*pagesFile
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
	var file *pagesFile
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

func (l *Local) open(src image.Source, id uint32) (*pagesFile, error) {
	p, err := src.OpenPages(id)
	if err != nil {
		return nil, err
	}
	f := &pagesFile{Pages: p}
	l.files = append(l.files, f)
	return f, nil
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
	for i := sort.Search(len(l.extents), func(i int) bool { return l.extents[i].end > addr }); addr < end; i++ {
		if i == len(l.extents) || l.extents[i].addr > addr {
			return fmt.Errorf("page %x is in no image", addr)
		}
		e := &l.extents[i]
		for stop := min(e.end, end); addr < stop; {
			b, give, err := e.file.view(e.off+int64(addr-e.addr), stop-addr)
			if err != nil {
				return err
			}
			err = deliver(addr, b)
			give()
			if err != nil {
				return err
			}
			addr += uint64(len(b))
		}
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

// pagesFile gives out mapped windows of a pages file, so that bytes go from the page cache to the task.
type pagesFile struct {
	*image.Pages
	mu     sync.Mutex
	window *window // used last
}

// window is a stretch of a file, mapped as long as somebody uses it.
type window struct {
	at    int64
	b     []byte
	users int
}

// windowSize is a compromise between system calls and memory.
const windowSize = 8 << 20

// view returns up to n bytes at off, valid until give is called.
func (f *pagesFile) view(off int64, n uint64) (b []byte, give func(), err error) {
	if n <= smallView {
		b := make([]byte, n)
		if _, err := f.ReadAt(b, off); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, nil, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		return b, func() {}, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.window
	if w == nil || off < w.at || off >= w.at+int64(len(w.b)) {
		start := off &^ (windowSize - 1)
		m, err := unix.Mmap(int(f.Fd()), start, int(min(windowSize, f.Size-start)), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return nil, nil, fmt.Errorf("map %s at %d: %w", f.Name(), start, err)
		}
		f.drop(f.window)
		w = &window{at: start, b: m, users: 1}
		f.window = w
	}
	w.users++
	b = w.b[off-w.at:]
	return b[:min(uint64(len(b)), n)], func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.drop(w)
	}, nil
}

// smallView is up to what it is faster to read than to look into a mapping.
const smallView = 256 << 10

func (f *pagesFile) drop(w *window) {
	if w == nil {
		return
	}
	if w.users--; w.users == 0 {
		unix.Munmap(w.b)
	}
}

// Close closes the file.
func (f *pagesFile) Close() error {
	f.mu.Lock()
	f.drop(f.window)
	f.window = nil
	f.mu.Unlock()
	return f.Pages.Close()
}
