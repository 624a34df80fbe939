package restorers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
)

// Trace is a name that is about to be made, for a moment.
type Trace struct {
	Path      string
	Directory bool
	Dev, Ino  uint64 // what will have the name; 0: not known yet
}

// Remove takes the name away, unless something else has it.
func (t Trace) Remove() error {
	var st unix.Stat_t
	if err := unix.Lstat(t.Path, &st); err != nil || t.Ino != 0 && (st.Dev != t.Dev || st.Ino != t.Ino) {
		return nil
	}
	return os.Remove(t.Path)
}

// Track notes a trace, to be removed if the restore breaks off before forget is called.
type Track func(Trace) (forget func(), err error)

// Hidden says whether Prepare has names to make.
func (p *Paths) Hidden() bool { return len(p.ghosts)+len(p.links) > 0 }

// oldGhost marks the number of a ghost file in sets that do not say what type a remap is.
const oldGhost = 1 << 31

// remapped plans a file whose name does not lead to it. It returns false where the name will do it after all.
func (p *Paths) remapped(n *Named, m *remap_file_path.RemapFilePathEntry) (done bool, err error) {
	typ, id := m.GetRemapType(), m.GetRemapId()
	if m.RemapType == nil && id&oldGhost != 0 {
		typ, id = remap_file_path.RemapType_GHOST, id&^oldGhost
	}
	switch typ {
	case remap_file_path.RemapType_PROCFS:
		return false, nil // a helper has that pid while the file is opened
	case remap_file_path.RemapType_GHOST:
		return true, p.planGhost(n, id)
	case remap_file_path.RemapType_LINKED:
		return true, p.planLink(n, id)
	}
	return false, image.Errorf(image.RemapFpath.File(0), -1, "remap_type %d is not known", typ)
}

// planLink finds the link that the dump put beside a name that was deleted.
func (p *Paths) planLink(n *Named, id uint32) error {
	e := p.set.Files[id]
	if e == nil || e.GetType() != fdinfo.FdTypes_REG || !filepath.IsAbs(e.GetReg().GetName()) {
		return image.Errorf(image.RemapFpath.File(0), -1, "remap_id %d is no file with a path", id)
	}
	f, err := p.locate(filepath.Clean(e.GetReg().GetName()), n.Entry)
	if err != nil {
		return fmt.Errorf("%w: the dump put it beside %s, which had been deleted", err, n.Entry.GetName())
	}
	if err := p.verify(n.Entry, f); err != nil {
		return err
	}
	n.found = f
	for _, l := range p.links {
		if l == f.path {
			return nil
		}
	}
	p.links = append(p.links, f.path)
	return nil
}

// linkPrefix begins the name of every link that a dump makes. A set cannot name other files to be removed.
const linkPrefix = "link_remap."

// Links lists what the dump linked beside deleted files: superfluous when the restore has succeeded.
func (p *Paths) Links() []string {
	var ours []string
	for _, l := range p.links {
		if strings.HasPrefix(filepath.Base(l), linkPrefix) {
			ours = append(ours, l)
		}
	}
	return ours
}

// Prepare makes files that have no name any more, and takes hold of them and of those that have lost one. Each gets its
// old name for a moment only, so that /proc shows it as it did, and is held by a descriptor of the tool then, through
// which the tasks open it. Nothing is left in any directory. Close lets go.
func (p *Paths) Prepare(ctx context.Context, track Track) error {
	for _, g := range p.ghosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := &traces{track: track}
		if err := errors.Join(p.makeGhost(g, t), t.wipe()); err != nil {
			return fmt.Errorf("deleted file %s: %w", g.users[0].Entry.GetName(), err)
		}
	}
	held := map[string]int{}
	for _, n := range p.order {
		if n.held >= 0 || n.found == nil || n.found.path == n.path {
			continue
		}
		// A link: the entry's name is the one to be shown.
		key := n.path + "\x00" + n.found.path
		if fd, ok := held[key]; ok {
			n.held = fd
			continue
		}
		t := &traces{track: track}
		if err := errors.Join(p.holdLink(n, t), t.wipe()); err != nil {
			return err
		}
		held[key] = n.held
	}
	return nil
}

// Close lets go of the files that Prepare holds.
func (p *Paths) Close() {
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	p.fds = nil
}

func (p *Paths) holdLink(n *Named, t *traces) error {
	if n.found.st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return p.hold(n, n.found.path)
	}
	name, err := t.link(n.found.path, 0, n.path, &n.found.st)
	if err != nil {
		name = n.found.path // only the name that /proc shows will differ
	}
	return p.hold(n, name)
}

// hold opens a handle on the file that has a name now.
func (p *Paths) hold(n *Named, name string) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	p.fds = append(p.fds, fd)
	n.held = fd
	return nil
}

// traces are names made for a moment.
type traces struct {
	track  Track
	remove []func() error
}

// wipe removes them, last made first.
func (t *traces) wipe() error {
	var errs []error
	for i := len(t.remove) - 1; i >= 0; i-- {
		errs = append(errs, t.remove[i]())
	}
	t.remove = nil
	return errors.Join(errs...)
}

// made notes a name that is about to be made.
func (t *traces) made(trace Trace) error {
	forget, err := t.track(trace)
	if err != nil {
		return err
	}
	t.remove = append(t.remove, func() error {
		err := trace.Remove()
		if err == nil {
			forget()
		}
		return err
	})
	return nil
}

// spare is put behind a name that somebody else has taken since.
const spare = ".cr_link"

// link gives the file that from leads to a name, or one like it, and returns that. flags are those of linkat.
func (t *traces) link(from string, flags int, name string, st *unix.Stat_t) (string, error) {
	if err := t.parents(filepath.Dir(name)); err != nil {
		return "", err
	}
	for _, try := range []string{name, name + spare} {
		var now unix.Stat_t
		if err := unix.Lstat(try, &now); err == nil {
			if now.Dev == st.Dev && now.Ino == st.Ino {
				return try, nil
			}
			continue
		}
		if err := t.made(Trace{Path: try, Dev: st.Dev, Ino: st.Ino}); err != nil {
			return "", err
		}
		err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, try, flags)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return "", &os.LinkError{Op: "link", Old: from, New: try, Err: err}
		}
		return try, nil
	}
	return "", fmt.Errorf("%s and %s%s are both taken", name, name, spare)
}

// parents makes the directories above a name that are gone too.
func (t *traces) parents(dir string) error {
	if _, err := os.Lstat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return nil // whatever is wrong with it, the next step tells
	}
	if err := t.parents(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := t.made(Trace{Path: dir, Directory: true}); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}
