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
	"time"

	"cryo/internal/selfexec"

	"golang.org/x/sys/unix"
)

// argv0 tells an executable that it is started as a guardian.
const argv0 = "criu-guardian"

// Guardian is the ward's end of a guardian. It is a journal in the sense of package pipeline. Its methods may be called
// by several goroutines at once.
type Guardian struct {
	sock   *os.File
	bell   *os.File // wakes the sentry; nil: the guardian itself was started
	pid    int
	lastID atomic.Uint64
	warn   sync.Once
	rung   sync.Once
	closed atomic.Bool

	mu        sync.Mutex
	up        bool            // the guardian was started or woken
	records   map[uint64]bool // neither forgotten nor dropped
	finishes  map[uint64]bool
	committed bool
}

// Start starts a guardian, which writes what it does to log, or nowhere if that is nil. It returns as soon as the
// process exists; records sent from then on are safe. The executable must call [Main].
func Start(log *os.File) (*Guardian, error) {
	g, err := startWith(log)
	if err != nil {
		return nil, fmt.Errorf("start the guardian: %w", err)
	}
	return g, nil
}

func startWith(log *os.File) (*Guardian, error) {
	var files opened
	defer files.closeAll()
	null := files.add(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	if log == nil {
		log = null
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	files.add(theirs, nil)
	ward := files.add(ownPidfd())
	exe := files.add(openExe())
	heard, bell, err := os.Pipe()
	files.add(heard, err)
	if files.err != nil {
		ours.Close()
		bell.Close()
		return nil, files.err
	}
	g := &Guardian{sock: ours, bell: bell, records: map[uint64]bool{}, finishes: map[uint64]bool{}}
	fds := []uintptr{null.Fd(), null.Fd(), log.Fd(), theirs.Fd(), ward.Fd(), heard.Fd(), exe.Fd()}
	if g.pid, err = startSentry(fds); errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS) { // see vm.memfd_noexec
		g.up = true
		g.pid, err = start(selfexec.Path, fds[:wardFD+1])
	}
	if err != nil {
		ours.Close()
		bell.Close()
		return nil, err
	}
	return g, nil
}

// opened are files that a guardian inherits and the ward does not need any more then.
type opened struct {
	files []*os.File
	err   error
}

func (o *opened) add(f *os.File, err error) *os.File {
	if err != nil {
		o.err = errors.Join(o.err, err)
		return nil
	}
	o.files = append(o.files, f)
	return f
}

func (o *opened) closeAll() {
	for _, f := range o.files {
		f.Close()
	}
}

// socketBuffer is room for what is sent before the guardian reads; the default of 208 KiB holds some 250 records.
const socketBuffer = 8 << 20

func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	return os.NewFile(uintptr(fds[0]), "guardian"), os.NewFile(uintptr(fds[1]), "ward"), nil
}

func ownPidfd() (*os.File, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Pid is the guardian's process id.
func (g *Guardian) Pid() int { return g.pid }

// wake makes the sentry the guardian.
func (g *Guardian) wake() {
	g.rung.Do(func() {
		g.mu.Lock()
		g.up = true
		g.mu.Unlock()
		g.bell.Close()
	})
}

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
	kept := g.records
	if op == opFinish {
		kept = g.finishes
	}
	g.mu.Lock()
	kept[id] = true
	g.mu.Unlock()
	return func() {
		g.send(message{Op: opForget, ID: id}, nil) // a gone guardian has forgotten too
		g.mu.Lock()
		delete(kept, id)
		g.mu.Unlock()
	}, nil
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
func (g *Guardian) Commit() error {
	err := g.send(message{Op: opCommit}, nil)
	if err == nil {
		g.mu.Lock()
		g.committed = true
		clear(g.records)
		g.mu.Unlock()
	}
	return err
}

// send sends a message. That the guardian is gone is no error: the ward goes on without it.
func (g *Guardian) send(m message, fds []int) error {
	sock, err := descriptor(g.sock)
	if err == nil {
		err = send(sock, m, fds, unix.MSG_DONTWAIT)
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ETOOMANYREFS) { // the socket holds no more unread
		g.wake()
		err = g.sendOn(sock, m, fds)
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

// sendOn sends a message to a guardian that is reading, or about to. Of descriptors on their way the kernel allows a user
// without privileges no more than open files; those are waited for.
func (g *Guardian) sendOn(sock int, m message, fds []int) error {
	for end := time.Now().Add(doBound); ; time.Sleep(time.Millisecond) {
		if err := send(sock, m, fds, 0); !errors.Is(err, unix.ETOOMANYREFS) || time.Now().After(end) {
			return err
		}
	}
}

// idle says whether a sentry stands there and there is nothing to be done.
func (g *Guardian) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.up && len(g.records) == 0 && (!g.committed || len(g.finishes) == 0)
}

// Dismiss ends a sentry that has nothing to do, which Close then waits for. It says whether there was nothing to do.
func (g *Guardian) Dismiss() bool {
	idle := g.idle()
	if idle && !g.closed.Load() {
		unix.Kill(g.pid, unix.SIGKILL)
	}
	return idle
}

// closeBound is how long Close waits for the guardian to do what is left.
const closeBound = 30 * time.Second

// Close lets the guardian go and waits until it has exited. What has been recorded and neither forgotten nor dropped, it
// does first; an error says that some of it failed.
func (g *Guardian) Close() error {
	if g.closed.Swap(true) {
		return nil
	}
	if g.idle() {
		unix.Kill(g.pid, unix.SIGKILL)
		g.wait()
		g.sock.Close()
		g.bell.Close()
		return nil
	}
	err := g.send(message{Op: opClose}, nil)
	g.sock.Close()
	g.wake()
	ended := make(chan unix.WaitStatus, 1)
	go func() { ended <- g.wait() }()
	select {
	case status := <-ended:
		if err == nil && status.Exited() && status.ExitStatus() != 0 {
			err = errors.New("the guardian could not take everything back: see the log")
		}
	case <-time.After(closeBound):
		err = fmt.Errorf("the guardian (process %d) has not ended within %v", g.pid, closeBound)
	}
	return err
}

// wait waits for the end of the process.
func (g *Guardian) wait() (status unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(g.pid, &status, 0, nil); err != unix.EINTR {
			return status
		}
	}
}
