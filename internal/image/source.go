package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Source is where an image set is read from. Its methods may be called concurrently.
type Source interface {
	// Open opens an image file; errors.Is(err, fs.ErrNotExist) when the set has none of that name.
	Open(name string) (io.ReadCloser, error)
	// Exists says whether the set has a file of that name.
	Exists(name string) (bool, error)
	// OpenPages opens pages-ID.img.
	OpenPages(id uint32) (*Pages, error)
	// Parent opens the set that this one builds on (PE_PARENT); nil, nil when there is none.
	Parent() (Source, error)
	// Close gives back what the source holds; files it opened stay open.
	Close() error
	// String names the set in messages.
	String() string
}

// Pages is an open pages file. It is read by [Pages.ReadAt] and [Pages.Window], however its pages are stored; the file itself
// is what they are stored in.
type Pages struct {
	*os.File
	Size int64 // bytes of the pages
	// Passing is for a file that takes memory of this machine and is gone with its source, as those of streams do:
	// whoever reads a part of it last gives that back.
	Passing bool
	blocks  *blocks // nil: the pages are stored as they are
}

// ReadAt implements io.ReaderAt.
func (p *Pages) ReadAt(b []byte, off int64) (n int, err error) {
	if p.blocks == nil {
		return p.File.ReadAt(b, off)
	}
	if n = int(max(0, min(int64(len(b)), p.Size-off))); n < len(b) {
		err = io.EOF
	}
	if rerr := p.blocks.read(p.File, b[:n], off); rerr != nil {
		return 0, fmt.Errorf("%s: %w", p.Name(), rerr)
	}
	return n, err
}

// Window is a part of a pages file in memory.
type Window struct {
	Bytes  []byte
	buffer *[]byte // nil: they are mapped
}

var windowBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Window brings n bytes at off, a page boundary, which are read once, in order, into memory: by mapping them, so that the
// kernel copies from the page cache and the tool stays small, or by expanding them.
func (p *Pages) Window(off, n int64) (Window, error) {
	if p.blocks != nil {
		buf := windowBuffers.Get().(*[]byte)
		*buf = grown(*buf, int(n))
		if _, err := p.ReadAt(*buf, off); err != nil {
			windowBuffers.Put(buf)
			return Window{}, err
		}
		return Window{*buf, buf}, nil
	}
	b, err := unix.Mmap(int(p.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return Window{}, fmt.Errorf("map %s at %d: %w", p.Name(), off, err)
	}
	// To be told so the kernel need not note that they were read. They are not populated: a fault brings sixteen pages, and
	// costs less than to look each up.
	_ = unix.Madvise(b, unix.MADV_SEQUENTIAL) // works without
	return Window{b, nil}, nil
}

// Close gives the memory back.
func (w Window) Close() {
	switch {
	case w.buffer != nil:
		windowBuffers.Put(w.buffer)
	case w.Bytes != nil:
		unix.Munmap(w.Bytes)
	}
}

// Release gives back the memory that a part of a passing file takes, which nobody will read any more. Files that stay are
// left as they are.
func (p *Pages) Release(off, n int64) {
	if !p.Passing {
		return
	}
	if p.blocks != nil {
		off, n = p.blocks.within(off, n)
	}
	if n > 0 {
		// Where it fails the memory comes back with the source.
		unix.Fallocate(int(p.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
}

// again is another descriptor of the file, for whoever closes it.
func (p *Pages) again() (*Pages, error) {
	fd, err := unix.FcntlInt(p.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, &fs.PathError{Op: "dup", Path: p.Name(), Err: err}
	}
	return &Pages{File: os.NewFile(uintptr(fd), p.Name()), Size: p.Size, Passing: p.Passing}, nil
}

// keptPages are pages files that were made of others, and are kept until their source is closed.
type keptPages struct {
	mu    sync.Mutex
	files map[uint32]*Pages
}

// get returns a file that is kept, or else what make makes, which is kept from then on. A nil file is not.
func (k *keptPages) get(id uint32, make func() (*Pages, error)) (*Pages, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[id]
	if f == nil {
		var err error
		if f, err = make(); f == nil || err != nil {
			return f, err
		}
		if k.files == nil {
			k.files = map[uint32]*Pages{}
		}
		k.files[id] = f
	}
	return f.again()
}

// close gives all of them up.
func (k *keptPages) close() {
	for _, f := range k.files {
		f.Close()
	}
}

// PagesFile is the name of the file that holds the pages of the page map with this pages_id.
func PagesFile(id uint32) string { return fmt.Sprintf("pages-%d.img", id) }

// parentLink is the symbolic link in a set to the set it builds on.
const parentLink = "parent"

// maxParents bounds the chain of parents.
const maxParents = 1024

// Dir is an image set in a directory. The directory is opened once; every file is opened by its single-component
// name relative to it and never through a link, so nobody who swaps names leads it anywhere else.
type Dir struct {
	dir   *os.File
	path  string
	below []unix.Stat_t // the sets whose parent this one is, to notice a circle
}

// OpenDir opens the image set in the directory path.
func OpenDir(path string) (*Dir, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open images directory: %w", err)
	}
	return &Dir{dir: f, path: path}, nil
}

// NewDir makes a Source of an open directory, which it takes over.
func NewDir(f *os.File) *Dir { return &Dir{dir: f, path: f.Name()} }

func (d *Dir) String() string { return d.path }

// Close closes the directory.
func (d *Dir) Close() error { return d.dir.Close() }

// Fd is the descriptor of the directory, valid until Close.
func (d *Dir) Fd() int { return int(d.dir.Fd()) }

// Open opens a regular file of the set.
func (d *Dir) Open(name string) (io.ReadCloser, error) {
	fd, size, err := d.openFD(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &small{fd, size, size, d, name}, nil
}

// small reads an image without what an os.File costs: a set of a thousand tasks has thousands of images.
type small struct {
	fd   int
	size int64
	left int64 // of what there was when it was opened
	dir  *Dir
	name string
}

// Size is the length of the file in bytes.
func (f *small) Size() int64 { return f.size }

func (f *small) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if f.left == 0 {
			return 0, io.EOF
		}
		n, err := unix.Read(f.fd, p[:min(int64(len(p)), f.left)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: f.dir.join(f.name), Err: err}
		case n == 0:
			return 0, io.EOF
		}
		f.left -= int64(n)
		return n, nil
	}
	return 0, nil
}

func (f *small) Close() error {
	if f.fd < 0 {
		return fs.ErrClosed
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// OpenFile is Open with the file itself and its size.
func (d *Dir) OpenFile(name string) (*os.File, int64, error) { return d.openFile(name, unix.O_RDONLY) }

func (d *Dir) openFile(name string, mode int) (*os.File, int64, error) {
	fd, size, err := d.openFD(name, mode)
	if err != nil {
		return nil, 0, err
	}
	// A task may inherit the descriptor.
	if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
		unix.Close(fd)
		return nil, 0, &fs.PathError{Op: "open", Path: d.join(name), Err: err}
	}
	return os.NewFile(uintptr(fd), d.join(name)), size, nil
}

// openFD opens a regular file. It has O_NONBLOCK, so that a FIFO planted under the name does not hang the open; it means
// nothing to a regular file.
func (d *Dir) openFD(name string, mode int) (int, int64, error) {
	if err := CheckName(name); err != nil {
		return -1, 0, err
	}
	fd, err := unix.Openat(int(d.dir.Fd()), name, mode|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.ELOOP {
		return -1, 0, &fs.PathError{Op: "open", Path: d.join(name), Err: errors.New("is a symbolic link, which is not followed in an image set")}
	}
	if err != nil {
		return -1, 0, &fs.PathError{Op: "open", Path: d.join(name), Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, &fs.PathError{Op: "open", Path: d.join(name), Err: err}
	}
	return fd, st.Size, nil
}

// Exists says whether there is a file of that name.
func (d *Dir) Exists(name string) (bool, error) {
	if err := CheckName(name); err != nil {
		return false, err
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(d.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "stat", Path: d.join(name), Err: err}
	}
	return true, nil
}

// OpenPages opens a pages file, to be read with pread by whoever has the descriptor.
func (d *Dir) OpenPages(id uint32) (*Pages, error) {
	f, size, err := d.OpenFile(PagesFile(id))
	if err != nil {
		return nil, err
	}
	return &Pages{File: f, Size: size}, nil
}

// OpenPagesToPunch opens a pages file for those who take pages out of it that nobody needs any more: it can be
// written.
func (d *Dir) OpenPagesToPunch(id uint32) (*Pages, error) {
	f, size, err := d.openFile(PagesFile(id), unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	return &Pages{File: f, Size: size}, nil
}

// Names lists the files of the directory.
func (d *Dir) Names() ([]string, error) {
	// Another open file, for its own read position.
	fd, err := unix.Openat(int(d.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	return f.Readdirnames(-1)
}

// Remove removes a file of the set; one that is not there is gone already.
func (d *Dir) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(d.dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: d.join(name), Err: err}
	}
	return nil
}

// Parent follows the link named parent, the only one there may be in a set. Whoever owns a set may point it at
// sets of their own; only the superuser's link may lead to another owner's directory, else a set could be made
// to show memory of somebody else.
func (d *Dir) Parent() (Source, error) {
	fail := func(err error) (Source, error) {
		return nil, &fs.PathError{Op: "open", Path: d.join(parentLink), Err: err}
	}
	own, up := unix.Stat_t{}, unix.Stat_t{}
	fd, err := unix.Openat(int(d.dir.Fd()), parentLink, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		if there, _ := d.Exists(parentLink); !there {
			return nil, nil
		}
	}
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), d.join(parentLink))
	if err := errors.Join(unix.Fstat(int(d.dir.Fd()), &own), unix.Fstat(fd, &up)); err != nil {
		f.Close()
		return fail(err)
	}
	if own.Uid != 0 && own.Uid != up.Uid {
		f.Close()
		return fail(fmt.Errorf("user %d owns the set and user %d the one it points at", own.Uid, up.Uid))
	}
	below := append(d.below[:len(d.below):len(d.below)], own)
	for _, st := range below {
		if st.Dev == up.Dev && st.Ino == up.Ino {
			f.Close()
			return fail(errors.New("the chain of parents is a circle"))
		}
	}
	if len(below) > maxParents {
		f.Close()
		return fail(fmt.Errorf("more than %d parents", maxParents))
	}
	return &Dir{dir: f, path: d.join(parentLink), below: below}, nil
}

func (d *Dir) join(name string) string { return filepath.Join(d.path, name) }

// CheckName refuses what is no plain file name. Names that come from an image or a peer go through it before
// they touch a directory.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot be the name of an image", name)
	}
	return nil
}
