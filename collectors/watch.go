package collectors

import (
	"fmt"
	"log/slog"
	"os"

	"cryo/internal/fhandle"
	"cryo/internal/poll"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// watched is an inode that an inotify or fanotify instance watches.
type watched struct {
	dev    uint32 // as the kernel numbers it
	ino    uint64
	handle *fh.FhEntry
}

// parseWatched reads what a line of fdinfo says of the handle. Filesystems that cannot be exported have none.
func parseWatched(dev uint32, ino uint64, rest string) (*watched, error) {
	w := &watched{dev: dev, ino: ino}
	var size, typ uint32
	var text string
	if _, err := fmt.Sscanf(rest, "fhandle-bytes:%x fhandle-type:%x f_handle:%s", &size, &typ, &text); err != nil {
		size, typ, text = 0, 0, ""
	}
	var err error
	w.handle, err = fhandle.Parse(size, typ, text)
	return w, err
}

// findWatched fills the path of a watched file, the most portable name it has. A file whose handle leads to it, but to no
// path, is found by the handle again, where the filesystem is the same one then.
func (f *Files) findWatched(p *Probe, w *watched) error {
	root := fmt.Sprintf("/proc/%d/root", p.holder().Pid)
	mounts, err := f.mountsOf(p.holder())
	if err != nil {
		return err
	}
	what := fmt.Sprintf("a watch of inode %d on device %d:%d", w.ino, w.dev>>20, w.dev&(1<<20-1))
	fd, err := fhandle.Open(mounts, root, w.dev, w.ino, w.handle)
	if err == nil {
		defer unix.Close(fd)
		path, st, err := pathOf(fd)
		switch {
		case err != nil:
			return err
		case path != "":
			w.handle.Path = proto.String(path)
			return nil
		case st.Nlink == 0:
			f.watchedGhosts = append(f.watchedGhosts, watchedGhost{p, inode{dev: st.Dev, ino: st.Ino}, what})
			return nil
		}
		if !f.env.Options.ForceIrmap && !volatile(mounts, w.dev) {
			return nil
		}
	}
	path, ok := f.irmap(w.dev, w.ino)
	if !ok {
		return p.Obstacle(what+", whose path cannot be found", "--irmap-scan-path PATH --force-irmap looks for it there")
	}
	w.handle.Path = proto.String(path)
	return nil
}

// pathOf is a path that leads to an open file, "" if there is none.
func pathOf(fd int) (string, *unix.Stat_t, error) {
	var st, now unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", nil, err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", nil, err
	}
	// A restore follows a link at the end.
	if unix.Lstat(path, &now) != nil || now.Dev != st.Dev || now.Ino != st.Ino || now.Mode&unix.S_IFMT == unix.S_IFLNK {
		return "", &st, nil
	}
	return path, &st, nil
}

// volatile says whether the inodes of a filesystem are others when it is mounted again.
func volatile(mounts []*mountinfo.Info, dev uint32) bool {
	for _, m := range mounts {
		if fhandle.KernelDev(m.Major, m.Minor) == dev {
			return m.FSType == "tmpfs" || m.FSType == "devtmpfs"
		}
	}
	return true
}

// mountsOf reads what a task sees mounted, once for all its watches.
func (f *Files) mountsOf(t *Task) ([]*mountinfo.Info, error) {
	if list, ok := f.mounts[t.Pid]; ok {
		return list, nil
	}
	list, err := fhandle.Mounts(t.Proc.Path("mountinfo"))
	f.mounts[t.Pid] = list
	return list, err
}

// watchedGhost is a watched file without a name.
type watchedGhost struct {
	*Probe
	inode
	what string
}

// checkWatchedGhosts refuses watches of files that have lost all names, unless the set has them: when the tree is gone,
// nothing leads to them any more.
func (f *Files) checkWatchedGhosts() {
	for _, w := range f.watchedGhosts {
		if _, stored := f.ghosts[w.inode]; !stored {
			f.env.Obstacles.Add(Obstacle{Pid: w.holder().Pid, Where: w.Where(), What: w.what + ", a deleted file that no task has open"})
		}
	}
}

// warnQueued says that events which are waiting to be read will be lost: there is no way to queue them again.
func warnQueued(p *Probe) error {
	fd, err := p.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if ready, err := poll.Now(fd, unix.POLLIN); err != nil || ready == 0 {
		return err
	}
	slog.Warn(fmt.Sprintf("Task %d, %s: events that have not been read will be lost", p.holder().Pid, p.Where()))
	return nil
}
