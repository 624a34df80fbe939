package restorers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// siocUnixFile opens a handle (O_PATH) on the file a unix socket is bound to: SIOCUNIXFILE, Linux 4.10; it takes
// CAP_NET_ADMIN.
const siocUnixFile = 0x89e0

// unixBinder gives sockets their names.
type unixBinder struct{ *unixSet }

// checkName makes sure, before any task exists, that the name can be had.
func (u *unixFile) checkName() error {
	if unixPath(u.UnixSkEntry) == "" || u.hidden() {
		return nil
	}
	for _, full := range []string{u.boundPath(), u.fullPath()} {
		var st unix.Stat_t
		err := unix.Lstat(full, &st)
		switch {
		case errors.Is(err, unix.ENOENT):
			if err := unix.Stat(path.Dir(full), &st); err != nil {
				return fmt.Errorf("unix socket %s: its directory: %w", full, err)
			}
		case err != nil:
			return &os.PathError{Op: "look up", Path: full, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
			return fmt.Errorf("unix socket %s cannot get its name back: it is that of %s now", full, typeName(st.Mode))
		}
	}
	return nil
}

// fullPath is where the socket's file is.
func (u *unixFile) fullPath() string {
	if place := image.GetPlace(u.UnixSkEntry); place != "" {
		return place
	}
	return u.boundPath()
}

// boundPath is where the socket's file was made. It may have been renamed since.
func (u *unixFile) boundPath() string {
	if p := unixPath(u.UnixSkEntry); strings.HasPrefix(p, "/") {
		return p
	}
	return path.Join(u.GetNameDir(), unixPath(u.UnixSkEntry))
}

// hidden says whether the name is only what the socket says of itself and leads to no file: the file was deleted, or is
// that of the listener which the connection was made with.
func (u *unixFile) hidden() bool {
	return unixPath(u.UnixSkEntry) != "" && (u.GetDeleted() || u.connection())
}

// connection says whether the socket is an end of a connection, which nobody can connect to any more.
func (u *unixFile) connection() bool {
	return u.GetType() != unix.SOCK_DGRAM && u.GetState() == unixEstablished
}

// accepted says whether the name of a socket is the abstract one of the listener its connection was made with.
func (u *unixFile) accepted() bool {
	return unixPath(u.UnixSkEntry) == "" && len(u.GetName()) > 0 && u.connection() && u.set.listeners[string(u.GetName())]
}

// fill binds all sockets that have a name. It does so on a thread that shares neither directories nor mask with others.
func (b unixBinder) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	var named []*unixFile
	for _, u := range b.order {
		if len(u.GetName()) > 0 && u.role != unixHanded && !u.accepted() {
			named = append(named, u)
		}
	}
	if len(named) == 0 {
		return nil
	}
	return onOwnThread(func(w *binder) error {
		for _, u := range named {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.bind(w, u, open); err != nil {
				return fmt.Errorf("unix socket %s: %w", u.printable(), err)
			}
		}
		return nil
	})
}

// bind gives one socket its name.
func (b unixBinder) bind(w *binder, u *unixFile, open opener) error {
	f := b.plan.Files[u.GetId()]
	fd, err := open(f.At, f.FD)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch {
	case unixPath(u.UnixSkEntry) == "" && u.connection():
		bindRaw(fd, sockaddrUn(u.GetName())) // it may be a listener's outside: then it goes without
		return nil
	case unixPath(u.UnixSkEntry) == "":
		return bindAbstract(fd, u.GetName())
	case u.GetDeleted():
		err = w.hidden(fd, u)
	case u.hidden():
		// Nobody can connect to it by this name, so it may go without where such a filesystem is not allowed.
		if err = w.hidden(fd, u); errors.Is(err, unix.EPERM) {
			err = nil
		}
		return err
	default:
		err = w.visible(fd, u, b.plan.Track)
	}
	if err != nil {
		return err
	}
	file, err := u.file(fd)
	if err != nil {
		return fmt.Errorf("its file: %w", err)
	}
	if b.wanted(u) {
		b.paths.fds = append(b.paths.fds, file)
		u.handle = file
	} else {
		defer unix.Close(file)
	}
	return u.dress(file)
}

// file opens a handle on the file of a socket that has just been bound. Without CAP_NET_ADMIN it is looked up by its name.
func (u *unixFile) file(fd int) (int, error) {
	file, err := unix.IoctlRetInt(fd, siocUnixFile)
	if errors.Is(err, unix.EPERM) && !u.hidden() {
		return unix.Open(u.fullPath(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	return file, err
}

// wanted says whether a task is going to connect to the socket.
func (s *unixSet) wanted(u *unixFile) bool { return u.GetState() == unixListen && s.waiting(u) > 0 }

// waiting is how many connections wait to be accepted by u.
func (s *unixSet) waiting(u *unixFile) int {
	n := 0
	for _, c := range s.byPeer[u.GetIno()] {
		if c.role == unixAlone && c.GetType() != unix.SOCK_DGRAM {
			n++
		}
	}
	return n
}

// bindAbstract waits a little for the name. A socket that was on the way to itself when its last holder died lives on
// until the kernel's collector comes by.
func bindAbstract(fd int, name []byte) error {
	const patience, step = time.Second, 10 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(step) {
		err := bindRaw(fd, sockaddrUn(name))
		if errors.Is(err, unix.EADDRINUSE) && time.Now().Before(end) {
			continue
		}
		if errors.Is(err, unix.EADDRINUSE) {
			return errors.New("somebody else has this name now")
		}
		return err
	}
}

// dress gives the file its owner and mode. There is no name on the way that could lead elsewhere.
func (u *unixFile) dress(file int) error {
	perms := u.GetFilePerms()
	if perms == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return err
	}
	if st.Uid != perms.GetUid() || st.Gid != perms.GetGid() {
		if err := unix.Fchownat(file, "", int(perms.GetUid()), int(perms.GetGid()), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	if (st.Mode^perms.GetMode())&0o7777 != 0 {
		if err := unix.Chmod(link(file), perms.GetMode()&0o7777); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return nil
}

func (u *unixFile) printable() string {
	if p := unixPath(u.UnixSkEntry); p != "" {
		return p
	}
	if n := string(u.GetName()); n != "" {
		return "@" + strings.ReplaceAll(n[1:], "\x00", "@")
	}
	return fmt.Sprint(u.GetIno())
}

// binder is the thread that binds.
type binder struct {
	root    int // the root directory of the tool
	private int // of a filesystem that has no place in any tree, -1: not made yet
}

// onOwnThread runs do on a thread of its own, which ends with it.
func onOwnThread(do func(*binder) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("directories of a thread's own: %w", err)
			}
			unix.Umask(0)
			root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			w := &binder{root: root, private: -1}
			defer w.close()
			return do(w)
		}()
	}()
	return <-done
}

func (w *binder) close() {
	unix.Close(w.root)
	if w.private >= 0 {
		unix.Close(w.private)
	}
}

// visible binds where the file is to be found. The file of the socket that was dumped may still be there; then the new one
// takes its place, and stays there, a dead socket as the old one, if the restore fails.
func (w *binder) visible(fd int, u *unixFile, track Track) error {
	name := unixPath(u.UnixSkEntry)
	if !path.IsAbs(name) {
		if err := unix.Chdir(u.GetNameDir()); err != nil {
			return &os.PathError{Op: "enter", Path: u.GetNameDir(), Err: err}
		}
	}
	err := bindRaw(fd, sockaddrUn([]byte(name)))
	if errors.Is(err, unix.EADDRINUSE) {
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			if err := unix.Unlink(name); err != nil {
				return fmt.Errorf("remove what is left of the old one: %w", err)
			}
		}
		if err := bindRaw(fd, sockaddrUn([]byte(name))); err != nil {
			return err
		}
	} else if err != nil {
		return err
	} else if err := w.track(u.boundPath(), name, track); err != nil {
		return err
	}
	return w.move(u, name, track)
}

// move puts the file where the socket's had been renamed to, over that of the old one if it is still there.
func (w *binder) move(u *unixFile, name string, track Track) error {
	place := image.GetPlace(u.UnixSkEntry)
	if place == "" {
		return nil
	}
	var st unix.Stat_t
	taken := unix.Lstat(place, &st) == nil
	if err := os.Rename(name, place); err != nil || taken {
		return err
	}
	return w.track(place, place, track)
}

// track lets the file at full, whose name from the binder's directory is name, go if the restore fails.
func (w *binder) track(full, name string, track Track) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil || track == nil {
		return err
	}
	_, err := track(Trace{Path: full, Dev: st.Dev, Ino: st.Ino})
	return err
}

// hidden binds in a filesystem nobody sees, where the directories of the name are made as they were, and removes the
// file. What the socket says of its name is the same, and no name that is there now is in the way.
func (w *binder) hidden(fd int, u *unixFile) (err error) {
	if w.private < 0 {
		if w.private, err = privateRoot(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, w.leave()) }()
	if err := unix.Fchdir(w.private); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	name, dir := unixPath(u.UnixSkEntry), u.GetNameDir()
	if dir == "" {
		dir = "/"
	}
	for _, d := range []string{dir, path.Dir(path.Join(dir, name)), path.Dir(name)} {
		if !path.IsAbs(d) {
			continue
		}
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := bindRaw(fd, sockaddrUn([]byte(name))); err != nil {
		return err
	}
	return unix.Unlink(name)
}

func (w *binder) leave() error {
	if err := unix.Fchdir(w.root); err != nil {
		return err
	}
	return unix.Chroot(".")
}

// privateRoot makes a filesystem that is mounted nowhere (fsmount, Linux 5.2) and goes with its last user.
func privateRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("a filesystem for deleted names: %w (CAP_SYS_ADMIN is needed)", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("a filesystem for deleted names: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("a filesystem for deleted names: %w", err)
	}
	return fd, nil
}
