package restorers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cryo/internal/image"

	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"golang.org/x/sys/unix"
)

// ghost is a deleted file whose content is in the set: one inode, however many descriptors and mappings use it.
type ghost struct {
	id    uint32
	head  *ghost_file.GhostFileEntry
	users []*Named
}

// maxSeconds bounds times from an image: further away than any clock.
const maxSeconds = 1 << 40

// planGhost notes that n is a user of ghost file id, whose head it checks.
func (p *Paths) planGhost(n *Named, id uint32) error {
	for _, g := range p.ghosts {
		if g.id == id {
			g.users = append(g.users, n)
			return nil
		}
	}
	d, f, err := image.Open(p.set.Source, image.GhostFile, uint64(id))
	if err != nil {
		return fmt.Errorf("deleted file %s: %w", n.Entry.GetName(), err)
	}
	defer f.Close()
	head, err := ghostHead(d)
	if err != nil {
		return err
	}
	p.ghosts = append(p.ghosts, &ghost{id: id, head: head, users: []*Named{n}})
	return nil
}

func ghostHead(d *image.Decoder) (*ghost_file.GhostFileEntry, error) {
	m, err := d.Next()
	if errors.Is(err, io.EOF) {
		err = image.Errorf(d.File(), -1, "there is no entry")
	}
	if err != nil {
		return nil, err
	}
	g := m.(*ghost_file.GhostFileEntry)
	switch g.GetMode() & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	case unix.S_IFLNK:
		if t := g.GetSymlnkTarget(); t == "" || len(t) >= unix.PathMax || strings.ContainsRune(t, 0) {
			return nil, image.Errorf(d.File(), 0, "symlnk_target %.100q is no target of a link", t)
		}
	default:
		return nil, image.Errorf(d.File(), 0, "mode %#o is no kind of file", g.GetMode())
	}
	switch {
	case int64(g.GetSize()) < 0:
		return nil, image.Errorf(d.File(), 0, "size %d is no size of a file", g.GetSize())
	case g.GetAtim().GetTvSec() > maxSeconds || g.GetMtim().GetTvSec() > maxSeconds:
		return nil, image.Errorf(d.File(), 0, "atim or mtim is no time")
	}
	return g, nil
}

// makeGhost makes the file, gives it the name of each user for as long as it takes to open a handle, and sets its
// times at last.
func (p *Paths) makeGhost(g *ghost, t *traces) error {
	held := map[string]*Named{}
	for _, n := range g.users {
		if h := held[n.path]; h != nil {
			n.held = h.held
			continue
		}
		held[n.path] = n
		name, err := g.name(n, t)
		if err != nil {
			return err
		}
		if err := p.hold(n, name); err != nil {
			return err
		}
		if n == g.users[0] && g.head.GetMode()&unix.S_IFMT != unix.S_IFREG {
			if err := g.dress(n.held); err != nil {
				return err
			}
		}
	}
	if err := t.wipe(); err != nil {
		return err
	}
	return g.times(g.users[0].held)
}

// name makes the name of a user lead to the ghost and returns the name that does.
func (g *ghost) name(n *Named, t *traces) (string, error) {
	if first := g.users[0]; first.held >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(first.held, &st); err != nil {
			return "", err
		}
		if name, err := t.link(link(first.held), unix.AT_SYMLINK_FOLLOW, n.path, &st); err == nil {
			return name, nil
		}
		return link(first.held), nil // elsewhere: only the name that /proc shows will differ
	}
	if err := t.parents(filepath.Dir(n.path)); err != nil {
		return "", err
	}
	if g.head.GetMode()&unix.S_IFMT == unix.S_IFREG {
		return g.regular(n, t)
	}
	name, err := g.free(n, t)
	if err != nil {
		return "", err
	}
	return name, makeNode(name, g.head)
}

// free finds a name for a user's file that is not taken, and notes that it is about to be made.
func (g *ghost) free(n *Named, t *traces) (string, error) {
	for _, try := range []string{n.path, n.path + spare} {
		var st unix.Stat_t
		if unix.Lstat(try, &st) != nil {
			return try, t.made(Trace{Path: try, Directory: g.head.GetMode()&unix.S_IFMT == unix.S_IFDIR})
		}
	}
	return "", fmt.Errorf("%s and %[1]s%s are both taken", n.path, spare)
}

func link(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// makeNode makes a file that is not regular; only its kind is right so far.
func makeNode(name string, g *ghost_file.GhostFileEntry) error {
	var err error
	switch kind := g.GetMode() & unix.S_IFMT; kind {
	case unix.S_IFDIR:
		err = unix.Mkdir(name, 0o700)
	case unix.S_IFLNK:
		err = unix.Symlink(g.GetSymlnkTarget(), name)
	default:
		err = unix.Mknod(name, kind|0o600, int(g.GetRdev()))
	}
	if err != nil {
		return &os.PathError{Op: "make", Path: name, Err: err}
	}
	return nil
}

// regular makes a regular file with its content. It is complete before it has a name, where the filesystem has
// O_TMPFILE (Linux 3.11).
func (g *ghost) regular(n *Named, t *traces) (string, error) {
	dir := filepath.Dir(n.path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		return g.regularNamed(n, t)
	}
	if err != nil {
		return "", &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if err := g.content(n, fd); err != nil {
		return "", err
	}
	if err := g.dress(fd); err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	return t.link(link(fd), unix.AT_SYMLINK_FOLLOW, n.path, &st)
}

func (g *ghost) regularNamed(n *Named, t *traces) (string, error) {
	name, err := g.free(n, t)
	if err != nil {
		return "", err
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", &os.PathError{Op: "make", Path: name, Err: err}
	}
	defer unix.Close(fd)
	return name, errors.Join(g.content(n, fd), g.dress(fd))
}

// dress gives the file its owner and mode, in this order: a change of the owner takes set-id bits away.
func (g *ghost) dress(fd int) error {
	if err := unix.Fchownat(fd, "", int(g.head.GetUid()), int(g.head.GetGid()), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if g.head.GetMode()&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := unix.Chmod(link(fd), g.head.GetMode()&0o7777); err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	return nil
}

// times sets access and modification time. fd is a handle only, so it goes through its link.
func (g *ghost) times(fd int) error {
	a, m := g.head.GetAtim(), g.head.GetMtim()
	if a == nil || m == nil || g.head.GetMode()&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	ts := []unix.Timespec{
		{Sec: int64(a.GetTvSec()), Nsec: int64(a.GetTvUsec()%1e6) * 1000},
		{Sec: int64(m.GetTvSec()), Nsec: int64(m.GetTvUsec()%1e6) * 1000},
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, link(fd), ts, 0); err != nil {
		return fmt.Errorf("times: %w", err)
	}
	return nil
}

// content writes what the image holds. Chunks leave the holes between them.
func (g *ghost) content(n *Named, fd int) error {
	d, f, err := image.Open(n.paths.set.Source, image.GhostFile, uint64(g.id))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := ghostHead(d); err != nil {
		return err
	}
	if !g.head.GetChunks() {
		_, err := io.Copy(io.NewOffsetWriter(writerAt(fd), 0), d.Payload())
		return err
	}
	size := g.head.GetSize()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fmt.Errorf("set the size to %d: %w", size, err)
	}
	for {
		m, err := d.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c := m.(*ghost_file.GhostChunkEntry)
		if c.GetLen() > size || c.GetOff() > size-c.GetLen() {
			return image.Errorf(d.File(), d.Entry(), "a chunk of %d bytes at %d does not fit into a file of %d", c.GetLen(), c.GetOff(), size)
		}
		if _, err := io.Copy(io.NewOffsetWriter(writerAt(fd), int64(c.GetOff())), d.Payload()); err != nil {
			return err
		}
	}
}

// writerAt writes to a descriptor by offset.
type writerAt int

func (w writerAt) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(int(w), p[done:], off+int64(done))
		if err != nil {
			return done, fmt.Errorf("write: %w", err)
		}
		done += n
	}
	return done, nil
}
