package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"cryo/internal/guardian"
	"cryo/internal/image"
	"cryo/internal/lazy"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/internal/selfexec"
	"cryo/internal/uffd"
	"cryo/restorers"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// ListenLazyPages opens the socket in the work directory that [ServeLazyPages] takes its restore from.
func ListenLazyPages(o *options.Options) (*net.UnixListener, error) {
	path := filepath.Join(o.Work(), lazy.SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("lazy-pages: %w", err)
	}
	slog.Debug("Waiting for incoming connections on " + path)
	return l, os.Chmod(path, 0o600)
}

// AcceptLazyRestore waits for the one restore that a server serves, and closes the listener.
func AcceptLazyRestore(ctx context.Context, l *net.UnixListener) (*net.UnixConn, error) {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	conn, err := l.AcceptUnix()
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("lazy-pages: ended before a restore came: %w", ctx.Err())
	}
	return conn, err
}

// ServeLazyPages brings pages into the tasks of the restore at the other end of conn until all are in.
func ServeLazyPages(ctx context.Context, o *options.Options, conn *net.UnixConn) error {
	return serveLazyPages(ctx, o, conn, openSource)
}

func serveLazyPages(ctx context.Context, o *options.Options, conn *net.UnixConn, openSet func(context.Context, *options.Options, *os.File) (image.Source, error)) error {
	images, err := imagesDir(o)
	if err != nil {
		return err
	}
	if images == nil {
		return errors.New("lazy-pages: it needs the set in a directory: -D - is none")
	}
	defer images.Close()
	src, err := openSet(ctx, o, images)
	if err != nil {
		return err
	}
	defer src.Close()
	open := func(pid int) (lazy.Pages, error) { return lazy.OpenLocal(src, pid) }
	if o.PageServer {
		conn, _, err := dialPageServer(o)
		if err != nil {
			return err
		}
		far := lazy.NewRemote(conn)
		defer far.Close()
		open = func(pid int) (lazy.Pages, error) { return far.Open(src, pid) }
	}
	find, err := finder(src)
	if err != nil {
		return err
	}
	s := &lazy.Server{Open: open, Find: find, Kill: func(host int) { killFamily(host) }}
	if o.WorkingSet != "" {
		if s.WorkingSet, err = lazy.OpenWorkingSet(o.WorkingSet); err != nil {
			return err
		}
	}
	if guardian.Available() {
		guard, err := guardian.Start(nil)
		if err != nil {
			return err
		}
		defer guard.Close()
		s.Insure = func(host int, fd uffd.FD) (func(), error) { return insureLate(guard, host, fd) }
	}
	if err := s.Serve(ctx, conn); err != nil {
		return fmt.Errorf("lazy-pages: %w", err)
	}
	if err := s.WorkingSet.Save(); err != nil {
		return err
	}
	slog.Info("lazy-pages: all pages are in", "faults", s.Faults.Load(), "pages", s.Copied.Load())
	if o.AutoDedup && !o.PageServer {
		return giveBack(images, sinks.Empty)
	}
	return nil
}

// lateTask is a task whose missing pages would be zeros if nobody served them any more.
type lateTask struct {
	Task taskID
	fd   *os.File
}

// UndoKind implements pipeline.UndoRecord.
func (lateTask) UndoKind() string { return "end-lazy-task" }

// Descriptors implements guardian.Holder.
func (t lateTask) Descriptors() []*os.File { return []*os.File{t.fd} }

func insureLate(guard *guardian.Guardian, pid int, fd uffd.FD) (func(), error) {
	id, err := identify(pid)
	if err != nil {
		return nil, err
	}
	dup, err := dupFD(int(fd), "userfaultfd")
	if err != nil {
		return nil, err
	}
	defer dup.Close()
	return guard.Record(lateTask{id, dup})
}

func doEndLate(_ context.Context, data json.RawMessage, _ []int) error {
	var t lateTask
	if err := json.Unmarshal(data, &t); err != nil {
		return err
	}
	if now, err := identify(t.Task.Pid); err != nil || now != t.Task {
		return nil
	}
	return killFamily(t.Task.Pid)
}

// finder returns what finds the task that has pid in the images: it is sender, if that one has the id in its own pid namespace.
// Who may not speak for others (CAP_SYS_ADMIN) restores no namespaces, and calls tasks as images do.
func finder(src image.Source) (func(pid, sender int) (int, error), error) {
	own, err := restorers.HasPIDNS(src)
	if err != nil {
		return nil, err
	}
	return func(pid, sender int) (int, error) {
		if sender > 1 && innermostID(sender) == pid {
			return sender, nil
		}
		if !own && pid > 1 {
			return pid, nil
		}
		return 0, fmt.Errorf("process %d has handed over the memory of task %d of the images, which it is not", sender, pid)
	}, nil
}

// innermostID is the id of a task in its own pid namespace, 0 if there is no such task.
func innermostID(pid int) int {
	ids, err := nsPids(pid)
	if err != nil {
		return 0
	}
	return ids[len(ids)-1]
}

// killFamily kills a task and what it has forked, which misses the same pages.
func killFamily(root int) error {
	if root <= 1 {
		return fmt.Errorf("there is no restored task %d", root)
	}
	var errs []error
	for pids := []int{root}; len(pids) > 0; {
		pid := pids[0]
		pids = pids[1:]
		if dir, err := procfs.OpenTask(pid); err == nil {
			if tids, err := dir.Threads(); err == nil {
				if children, err := dir.Children(tids); err == nil {
					pids = append(pids, children...)
				}
			}
			dir.Close()
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill task %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

var ownLazyServer = ownServer{name: "criu-lazy-pages", serve: func(o *options.Options, socket *os.File) error {
	conn, err := net.FileConn(socket)
	if err != nil {
		return err
	}
	return serveLazyPages(context.Background(), o, conn.(*net.UnixConn), openVerified)
}}

// LazyMain makes this process the server of a lazy restore, and does not return, if it was started as one; else it does
// nothing. Whoever wants lazy restores that bring their server with them calls it first thing in main, behind
// guardian.Main.
func LazyMain() { ownLazyServer.main() }

// startLazyServer starts a process that serves one restore.
func startLazyServer(o *options.Options, images *os.File) (*lazy.Client, error) {
	if !ownLazyServer.available.Load() {
		return nil, fmt.Errorf("no lazy-pages server listens on %s in the work directory: start criu lazy-pages there first", lazy.SocketName)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lazy-pages"), os.NewFile(uintptr(fds[1]), "restore")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	words := os.Stderr
	if o.Detach {
		words = logOrStderr()
	}
	pid, err := ownLazyServer.start(o, theirs, images, words)
	if err != nil {
		conn.Close()
		return nil, err
	}
	selfexec.Forget(pid)
	return lazy.NewClient(conn.(*net.UnixConn)), nil
}
