package restorers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
)

// Remaps gives names to files that have none any more, for as long as they are being opened: deleted files whose content
// is in the set (ghosts) and files the dump has put a link to beside their old name.
type Remaps struct {
	paths  *Paths
	set    *Set
	ghosts map[uint32]string // where a ghost has been made, by remap_id
	links  []string          // links the dump left, which a successful restore takes away
}

// Track notes that a name is about to be made; the returned function forgets it when it is gone again. remove takes it
// away if the restore breaks off in between.
type Track func(name string, remove func() error) (forget func(), err error)

// NewRemaps knows the remaps of a set.
func NewRemaps(p *Paths) *Remaps {
	return &Remaps{paths: p, set: p.set, ghosts: map[uint32]string{}}
}

// Prepare makes a name for every file that is remapped.
func (r *Remaps) Prepare(ctx context.Context, track Track) (cleanup func() error, err error) {
	var undo []func() error
	cleanup = func() error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	ids := make([]uint32, 0, len(r.set.Remaps))
	for id := range r.set.Remaps {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return cleanup, err
		}
		if r.set.Files[id].GetType() != fdinfo.FdTypes_REG {
			continue
		}
		reg, err := r.paths.Reg(id)
		if err != nil {
			return cleanup, err
		}
		made := func(name string, remove func() error) error {
			forget, err := track(name, remove)
			if err != nil {
				return err
			}
			undo = append(undo, func() error { defer forget(); return remove() })
			return nil
		}
		if err := r.one(id, reg, made); err != nil {
			return cleanup, err
		}
	}
	return cleanup, nil
}

func (r *Remaps) one(id uint32, reg *regfile.RegFileEntry, made func(string, func() error) error) error {
	m := r.set.Remaps[id]
	name := filepath.Clean(reg.GetName())
	if !filepath.IsAbs(name) {
		return image.Errorf(image.Files.File(0), -1, "id %d has the name %q, which is no absolute path", id, reg.GetName())
	}
	switch m.GetRemapType() {
	case remap_file_path.RemapType_PROCFS:
		return nil
	case remap_file_path.RemapType_LINKED:
		target, err := r.paths.Reg(m.GetRemapId())
		if err != nil {
			return err
		}
		return r.link(id, filepath.Clean(target.GetName()), name, made)
	case remap_file_path.RemapType_GHOST:
		if at, ok := r.ghosts[m.GetRemapId()]; ok {
			return r.link(id, at, name, made)
		}
		if err := makeParents(name, made); err != nil {
			return err
		}
		at, err := r.ghost(m.GetRemapId(), name, made)
		if err != nil {
			return fmt.Errorf("make deleted file %s: %w", name, err)
		}
		r.ghosts[m.GetRemapId()], r.paths.made[id] = at, at
		return nil
	}
	return image.Errorf(image.RemapFpath.File(0), -1, "remap_type %d is not known", m.GetRemapType())
}

// Links lists what the dump linked beside deleted files: superfluous when the restore has succeeded.
func (r *Remaps) Links() []string {
	var names []string
	for _, m := range r.set.Remaps {
		if m.GetRemapType() == remap_file_path.RemapType_LINKED {
			if reg, err := r.paths.Reg(m.GetRemapId()); err == nil && !slices.Contains(names, reg.GetName()) {
				names = append(names, reg.GetName())
			}
		}
	}
	return names
}

// spare is what is added to a name that somebody else has taken since.
const spare = ".cr_link"

// link gives a file its old name again.
func (r *Remaps) link(id uint32, from, name string, made func(string, func() error) error) error {
	if from == name {
		r.paths.made[id] = name
		return nil
	}
	if err := makeParents(name, made); err != nil {
		return err
	}
	for _, n := range []string{name, name + spare} {
		err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, n, 0)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return &os.LinkError{Op: "link", Old: from, New: n, Err: err}
		}
		r.paths.made[id] = n
		return made(n, remover(n))
	}
	r.paths.made[id] = from // both are taken: only the name that /proc shows will differ
	return nil
}

func remover(name string) func() error {
	return func() error {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
}

// makeParents makes the directories above name that are gone too.
func makeParents(name string, made func(string, func() error) error) error {
	dir := filepath.Dir(name)
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return nil // whatever is wrong with it, the next step tells
	}
	if err := makeParents(dir, made); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	return made(dir, remover(dir))
}

// ghost makes a deleted file at name, or beside it where that name is taken.
func (r *Remaps) ghost(id uint32, name string, made func(string, func() error) error) (string, error) {
	d, f, err := image.Open(r.set.Source, image.GhostFile, uint64(id))
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := d.Next()
	if err == io.EOF {
		err = image.Errorf(d.File(), -1, "there is no head")
	}
	if err != nil {
		return "", err
	}
	g := m.(*ghost_file.GhostFileEntry)
	for _, n := range []string{name, name + spare} {
		err = makeNode(n, g)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := made(n, remover(n)); err != nil {
			return "", err
		}
		return n, fillGhost(n, g, d)
	}
	return "", fmt.Errorf("both %s and %s%s are taken: %w", name, name, spare, err)
}

// makeNode makes an empty file of the ghost's type.
func makeNode(name string, g *ghost_file.GhostFileEntry) error {
	mode := g.GetMode()
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	case unix.S_IFDIR:
		return unix.Mkdir(name, 0o700)
	case unix.S_IFLNK:
		return unix.Symlink(g.GetSymlnkTarget(), name)
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return unix.Mknod(name, mode&unix.S_IFMT|0o600, int(g.GetRdev()))
	}
	return fmt.Errorf("mode %#o is no kind of file", mode)
}

// fillGhost gives a fresh file content, owner, mode and times.
func fillGhost(name string, g *ghost_file.GhostFileEntry, d *image.Decoder) error {
	regular := g.GetMode()&unix.S_IFMT == unix.S_IFREG
	if regular {
		if err := ghostContent(name, g, d); err != nil {
			return err
		}
	}
	if err := os.Lchown(name, int(g.GetUid()), int(g.GetGid())); err != nil {
		return err
	}
	if g.GetMode()&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := unix.Chmod(name, g.GetMode()&0o7777); err != nil {
		return err
	}
	if g.Atim == nil || g.Mtim == nil {
		return nil
	}
	at := time.Unix(int64(g.Atim.GetTvSec()), int64(g.Atim.GetTvUsec())*1000)
	mt := time.Unix(int64(g.Mtim.GetTvSec()), int64(g.Mtim.GetTvUsec())*1000)
	return os.Chtimes(name, at, mt)
}

func ghostContent(name string, g *ghost_file.GhostFileEntry, d *image.Decoder) error {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if !g.GetChunks() {
		_, err = io.Copy(f, d.Payload())
		return err
	}
	if int64(g.GetSize()) < 0 {
		return image.Errorf(d.File(), 0, "size %d is no size", g.GetSize())
	}
	if err := f.Truncate(int64(g.GetSize())); err != nil {
		return err
	}
	for {
		m, err := d.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c := m.(*ghost_file.GhostChunkEntry)
		if c.GetOff()+c.GetLen() < c.GetOff() || c.GetOff()+c.GetLen() > g.GetSize() {
			return image.Errorf(d.File(), d.Entry(), "chunk of %d bytes at %d is outside of the file's %d bytes", c.GetLen(), c.GetOff(), g.GetSize())
		}
		if _, err := io.Copy(io.NewOffsetWriter(f, int64(c.GetOff())), d.Payload()); err != nil {
			return err
		}
	}
}
