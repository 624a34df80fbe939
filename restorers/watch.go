package restorers

import (
	"fmt"
	"path"

	"cryo/internal/fhandle"
	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
)

// watched is a file that an inotify or fanotify instance is to watch.
type watched struct {
	tool  int
	path  string // free of links
	ghost *Named // a file without a name, in place of path
	fd    int    // the tool's descriptor, in place of both
}

// watch finds a watched file: it is a deleted one of the set, it has a path, or its handle leads to it. Call it when all
// files of the set are planned.
func (p *Paths) watch(dev uint32, ino uint64, h *fh.FhEntry) (*watched, error) {
	w := &watched{tool: p.opt.ToolPID, fd: -1}
	for _, g := range p.ghosts {
		// Numbers of devices come as stat(2) has them or as the kernel does.
		if g.head.GetIno() == ino && (g.head.GetDev() == dev || fhandle.StatDev(uint64(g.head.GetDev())) == dev) {
			w.ghost = g.users[0]
			return w, nil
		}
	}
	if h.Path != nil {
		return w, p.watchPath(w, h.GetPath())
	}
	mounts, err := fhandle.Mounts("/proc/self/mountinfo")
	if err == nil {
		w.fd, err = fhandle.Open(mounts, "", dev, ino, h)
	}
	if err != nil {
		return nil, fmt.Errorf("watch of inode %d, which has no path in the set: %w", ino, err)
	}
	p.fds = append(p.fds, w.fd)
	return w, nil
}

// watchPath finds a watched file by its path.
func (p *Paths) watchPath(w *watched, name string) error {
	if !path.IsAbs(name) || len(name) >= unix.PathMax {
		return image.Errorf(image.Files.File(0), -1, "the watched path %.100q is no absolute path", name)
	}
	f, err := p.locate(path.Clean(name), &regfile.RegFileEntry{Name: &name})
	if err != nil {
		return fmt.Errorf("watched file: %w", err)
	}
	w.path = f.path
	return nil
}

// emit calls add with a path that leads to the file.
func (w *watched) emit(b *remote.Builder, s *Slots, add func(path remote.Arg)) error {
	switch {
	case w.fd >= 0:
		add(s.path(fmt.Sprintf("/proc/%d/fd/%d", w.tool, w.fd)))
	case w.ghost != nil && w.ghost.held < 0:
		return fmt.Errorf("deleted file %s, which is watched, has not been made", w.ghost.Entry.GetName())
	case w.ghost != nil:
		add(s.path(fmt.Sprintf("/proc/%d/fd/%d", w.tool, w.ghost.held)))
	default:
		n := s.Temp(b.Call(unix.SYS_OPENAT2, remote.Imm(unix.AT_FDCWD), s.path(w.path), s.how(unix.O_PATH|unix.O_CLOEXEC), remote.Imm(unix.SizeofOpenHow)))
		add(s.path(fmt.Sprintf("/proc/self/fd/%d", n)))
		s.Close(n)
	}
	return nil
}
