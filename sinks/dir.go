package sinks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"golang.org/x/sys/unix"
)

// DirOptions are the choices of a directory sink.
type DirOptions struct {
	// Sync puts every file and the directory on stable storage before the set becomes valid. Off by default,
	// as in criu.
	Sync bool
	// Checksum puts a list of checksums into the set.
	Checksum bool
	// Parent is the set this one builds on, a path relative to the new set's directory: pages may be
	// PEParent. It becomes the link named parent.
	Parent string
	// FirstPages is the id of the first pages file; 0 means 1. A page server counts from elsewhere, so that
	// its files and those of a dump can be put together.
	FirstPages uint32
	// PagesOnly is for a page server: the inventory, if there is one, is somebody else's, and so is the link to
	// the parent unless Parent says otherwise.
	PagesOnly bool
	// Created, if set, is told the name of every file before it is made: whoever keeps a journal can remove
	// them if this process dies.
	Created func(name string) error
}

// Dir is a set in a directory. The directory is opened once and all is relative to that descriptor.
type Dir struct {
	dir  *os.File
	path string
	opt  DirOptions

	mu       sync.Mutex
	created  []string
	pagesID  uint32
	parentID string
	parent   image.Source // nil: none
	prepared bool         // an old inventory is gone
}

const (
	inventoryName = "inventory.img"
	// inventoryTemp is the name inventory.img has until it is complete.
	inventoryTemp = "inventory.img.tmp"
	parentName    = "parent"
)

// NewDir makes a sink of the directory path. Nothing is changed there before the first file is created.
func NewDir(path string, opt DirOptions) (*Dir, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open images directory: %w", err)
	}
	return NewDirFile(f, opt)
}

// NewDirFile is NewDir for an open directory, which the sink takes over.
func NewDirFile(f *os.File, opt DirOptions) (*Dir, error) {
	d := &Dir{dir: f, path: f.Name(), opt: opt, pagesID: max(opt.FirstPages, 1)}
	if opt.Parent == "" {
		return d, nil
	}
	fd, err := unix.Openat(d.fd(), opt.Parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "open previous images directory", Path: opt.Parent, Err: err}
	}
	d.parent = image.Packed(image.NewDir(os.NewFile(uintptr(fd), d.join(opt.Parent))))
	return d, nil
}

// previous is the set this one builds on, nil for none. Where the link to it is somebody else's to set it may come late.
func (d *Dir) previous() (image.Source, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.parent != nil || !d.opt.PagesOnly {
		return d.parent, nil
	}
	dup, err := unix.FcntlInt(d.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	here := image.NewDir(os.NewFile(uintptr(dup), d.path))
	defer here.Close()
	up, err := here.Parent()
	if up != nil {
		d.parent = image.Packed(up)
	}
	return d.parent, err
}

// reading is the directory as a set that is read.
func (d *Dir) reading() (*image.Dir, error) {
	dup, err := unix.FcntlInt(d.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return image.NewDir(os.NewFile(uintptr(dup), d.path)), nil
}

func (d *Dir) fd() int                 { return int(d.dir.Fd()) }
func (d *Dir) join(name string) string { return filepath.Join(d.path, name) }

// String is the path of the directory.
func (d *Dir) String() string { return d.path }

// Create makes an image file.
func (d *Dir) Create(name string) (Writer, error) {
	f, err := d.create(name)
	if err != nil {
		return nil, err
	}
	return &dirFile{f, d.opt.Sync}, nil
}

// dirFile is a file whose Close can mean stable storage.
type dirFile struct {
	*os.File
	sync bool
}

func (f *dirFile) Close() error {
	var err error
	if f.sync {
		err = f.Sync()
	}
	return errors.Join(err, f.File.Close())
}

// create makes a new file in place of whatever has the name. O_EXCL, and removing what is in its way, means
// that neither a link nor somebody's open descriptor nor a mode that is too wide survives.
func (d *Dir) create(name string) (*os.File, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	if err := d.note(name); err != nil {
		return nil, err
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(d.fd(), name, flags, 0o600)
	if err == unix.EEXIST {
		if err := d.remove(name); err != nil {
			return nil, err
		}
		fd, err = unix.Openat(d.fd(), name, flags, 0o600)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: d.join(name), Err: err}
	}
	return os.NewFile(uintptr(fd), d.join(name)), nil
}

// prepare makes what an older run left in the directory invalid, before the first file is replaced, and sets the
// link to the parent.
func (d *Dir) prepare() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.prepared {
		return nil
	}
	if !d.opt.PagesOnly {
		if err := errors.Join(d.remove(inventoryName), d.remove(parentName), d.remove(image.ParentID)); err != nil {
			return err
		}
	}
	if d.opt.Parent != "" {
		if err := d.remove(parentName); err != nil {
			return err
		}
		if err := d.noteLocked(parentName); err != nil {
			return err
		}
		err := unix.Symlinkat(d.opt.Parent, d.fd(), parentName)
		if err == unix.EEXIST { // a dump and the page server it sends to may share a directory
			err = d.sameLink()
		}
		if err != nil {
			return &fs.PathError{Op: "symlink", Path: d.join(parentName), Err: err}
		}
		if err := d.noteParent(); err != nil {
			return err
		}
	}
	d.prepared = true
	return nil
}

// NameParent has the dump_criu_run_id of the parent noted beside the link to it, so that another set in its place is
// noticed. Call it before the first file is created.
func (d *Dir) NameParent(id string) { d.parentID = id }

// sameLink says whether the link that is there is the one that was to be made.
func (d *Dir) sameLink() error {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(d.fd(), parentName, b[:])
	if err == nil && string(b[:n]) != d.opt.Parent {
		err = unix.EEXIST
	}
	return err
}

// noteParent writes down which set the link leads to.
func (d *Dir) noteParent() error {
	if d.parentID == "" {
		return nil
	}
	if err := d.noteLocked(image.ParentID); err != nil {
		return err
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(d.fd(), image.ParentID, flags, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: d.join(image.ParentID), Err: err}
	}
	f := &dirFile{os.NewFile(uintptr(fd), d.join(image.ParentID)), d.opt.Sync}
	_, err = f.WriteString(d.parentID)
	return errors.Join(err, f.Close())
}

func (d *Dir) note(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.noteLocked(name)
}

func (d *Dir) noteLocked(name string) error {
	d.created = append(d.created, name)
	if d.opt.Created != nil {
		return d.opt.Created(name)
	}
	return nil
}

func (d *Dir) remove(name string) error {
	err := unix.Unlinkat(d.fd(), name, 0)
	if err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: d.join(name), Err: err}
	}
	return nil
}

// Commit writes inventory.img under another name and renames it.
func (d *Dir) Commit(inv *inventory.InventoryEntry) error {
	b, err := encodeInventory(inv)
	if err != nil {
		return err
	}
	return d.commit(b)
}

func (d *Dir) commit(inventory []byte) error {
	if d.opt.Checksum {
		if err := d.writeSums(inventory); err != nil {
			return fmt.Errorf("checksums: %w", err)
		}
	}
	f, err := d.create(inventoryTemp)
	if err != nil {
		return err
	}
	_, err = f.Write(inventory)
	err = errors.Join(err, (&dirFile{f, d.opt.Sync}).Close())
	if err == nil && d.opt.Sync {
		err = d.dir.Sync()
	}
	if err != nil {
		return err
	}
	if err := d.note(inventoryName); err != nil {
		return err
	}
	if err := unix.Renameat(d.fd(), inventoryTemp, d.fd(), inventoryName); err != nil {
		return &fs.PathError{Op: "rename", Path: d.join(inventoryTemp), Err: err}
	}
	if d.opt.Sync {
		return d.dir.Sync()
	}
	return nil
}

// Abort removes what was created, the inventory first: it is the last that was noted.
func (d *Dir) Abort() error {
	d.mu.Lock()
	names := d.created
	d.created = nil
	d.mu.Unlock()
	var err error
	for _, name := range slices.Backward(names) {
		err = errors.Join(err, d.remove(name))
	}
	return err
}

// Close closes the directory and the parent's.
func (d *Dir) Close() error {
	if d.parent != nil {
		d.parent.Close()
	}
	return d.dir.Close()
}
