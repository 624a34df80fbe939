package guardian

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// argv0 tells an executable that it is started as a guardian.
const argv0 = "criu-guardian"

// Guardian is the ward's end of a guardian. It is a journal in the sense of package pipeline. Its methods may be called
// by several goroutines at once.
type Guardian struct {
	sock   *os.File
	proc   *os.Process
	gone   chan struct{}
	state  *os.ProcessState // once gone is closed
	lastID atomic.Uint64
	warn   sync.Once
	closed atomic.Bool
}

// Start starts a guardian, which writes what it does to log, or nowhere if that is nil. It returns as soon as the
// process exists; records sent from then on are safe. The executable must call [Main].
func Start(log *os.File) (*Guardian, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	defer null.Close()
	if log == nil {
		log = null
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the guardian: socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guardian"), os.NewFile(uintptr(fds[1]), "ward")
	defer theirs.Close()
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the guardian: pidfd_open: %w", err)
	}
	self := os.NewFile(uintptr(pidfd), "pidfd")
	defer self.Close()
	proc, err := os.StartProcess("/proc/self/exe", []string{argv0}, &os.ProcAttr{
		Dir:   "/",
		Files: []*os.File{null, null, log, theirs, self},
		Env:   []string{"GOMAXPROCS=2"}, // it has little to do
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	// Room for what is sent before the guardian reads; the default of 208 KiB holds some 250 records.
	if unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20) != nil {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<20)
	}
	g := &Guardian{sock: ours, proc: proc, gone: make(chan struct{})}
	go func() {
		g.state, _ = proc.Wait()
		close(g.gone)
	}()
	return g, nil
}

// Pid is the guardian's process id.
func (g *Guardian) Pid() int { return g.proc.Pid }

// Gone is closed when the guardian has exited.
func (g *Guardian) Gone() <-chan struct{} { return g.gone }

// Record keeps r to be undone if the ward dies before it commits. If the guardian is gone, it warns once and does
// nothing. An error is the record's fault.
func (g *Guardian) Record(r Record) (forget func(), err error) { return g.keep(opRecord, r) }

// Finish keeps r to be done if the ward dies after it committed.
func (g *Guardian) Finish(r Record) (forget func(), err error) { return g.keep(opFinish, r) }

func (g *Guardian) keep(op string, r Record) (forget func(), err error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%s record: %w", r.UndoKind(), err)
	}
	var fds []int
	if h, ok := r.(Holder); ok {
		files := h.Descriptors()
		defer runtime.KeepAlive(files)
		for _, f := range files {
			fd, err := descriptor(f)
			if err != nil {
				return nil, fmt.Errorf("%s record: %w", r.UndoKind(), err)
			}
			fds = append(fds, fd)
		}
	}
	id := g.lastID.Add(1)
	if err := g.send(message{Op: op, ID: id, Kind: r.UndoKind(), Data: data}, fds); err != nil {
		return nil, err
	}
	return func() { g.send(message{Op: opForget, ID: id}, nil) }, nil // a gone guardian has forgotten too
}

// descriptor returns the number of an open file, without making it blocking as File.Fd would.
func descriptor(f *os.File) (fd int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = conn.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// Commit drops all records: the point of no return. From now on the guardian would do what was given to Finish.
func (g *Guardian) Commit() error { return g.send(message{Op: opCommit}, nil) }

// send sends a message. That the guardian is gone is no error: the ward goes on without it.
func (g *Guardian) send(m message, fds []int) error {
	sock, err := descriptor(g.sock)
	if err == nil {
		err = send(sock, m, fds)
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		g.warn.Do(func() {
			slog.Warn("the guardian is gone: if this process is killed now, nobody will clean up after it")
		})
		return nil
	}
	if err != nil {
		return fmt.Errorf("tell the guardian: %w", err)
	}
	return nil
}

// closeBound is how long Close waits for the guardian to do what is left.
const closeBound = 30 * time.Second

// Close lets the guardian go and waits until it has exited. What has been recorded and neither forgotten nor dropped, it
// does first; an error says that some of it failed.
func (g *Guardian) Close() error {
	if g.closed.Swap(true) {
		return nil
	}
	err := g.send(message{Op: opClose}, nil)
	g.sock.Close()
	select {
	case <-g.gone:
	case <-time.After(closeBound):
		return fmt.Errorf("the guardian (process %d) has not ended within %v", g.proc.Pid, closeBound)
	}
	if err == nil && g.state != nil && g.state.Exited() && g.state.ExitCode() != 0 {
		err = errors.New("the guardian could not take everything back: see the log")
	}
	return err
}
