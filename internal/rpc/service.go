package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"cryo/internal/log"
	"cryo/internal/selfexec"

	"golang.org/x/sys/unix"
)

// DefaultAddress is where a service listens that is not told where.
const DefaultAddress = "criu_service.socket"

// maxClients bounds the clients of one user that are served at a time, unless it is root.
const maxClients = 16

// workerArgv0 tells an executable that it is started to serve one client of a service, which is on workerSocketFD.
const (
	workerArgv0    = "criu-service-worker"
	workerSocketFD = 3
)

// WorkerMain has this process serve one client by serve, and does not return, if a [Service] has started it for that; else
// it does nothing.
func WorkerMain(serve func(client *os.File) error) {
	if !selfexec.Is(workerArgv0) {
		return
	}
	selfexec.Become(workerArgv0, workerSocketFD)
	err := lowerAmbient()
	if err == nil {
		err = serve(os.NewFile(workerSocketFD, "client"))
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// lowerAmbient keeps what this process starts from having the capabilities that it was given itself.
func lowerAmbient() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("prctl(PR_CAP_AMBIENT)", errno)
	}
	return nil
}

// RaiseAmbient gives what the calling thread is about to execute the capability that a worker for another user was given.
func RaiseAmbient() {
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_CHECKPOINT_RESTORE, 0, 0) // who has not got it needs none
}

// Listen makes the socket of a service, to which anybody may connect. An old one that nobody listens on is replaced.
func Listen(path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unixpacket"}
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("service: %w", err)
	case st.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("service: %s is there and no socket: name another one by --address", path)
	default:
		if conn, err := net.DialUnix(addr.Net, nil, addr); err == nil {
			conn.Close()
			return nil, fmt.Errorf("service: another one listens on %s: name another socket by --address", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("service: %w", err)
		}
	}
	l, err := net.ListenUnix(addr.Net, addr)
	if err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("service: %w", err)
	}
	slog.Info("The service listens", "socket", path)
	return l, nil
}

// Service serves clients, each by a process of its own. A client that is not root is served by a process of its own user,
// with no other privilege than CAP_CHECKPOINT_RESTORE: it is the kernel that keeps it from tasks and files that are not its
// own.
type Service struct {
	mu      sync.Mutex
	clients map[uint32]int // by user
}

// Serve takes clients until ctx ends.
func (s *Service) Serve(ctx context.Context, l *net.UnixListener) error {
	s.clients = map[uint32]int{}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("service: %w", err)
		}
		if err := s.accept(conn); err != nil {
			slog.Warn("a client is not served", "err", err)
		}
	}
}

// accept starts the worker for a client.
func (s *Service) accept(conn *net.UnixConn) error {
	socket, err := conn.File()
	conn.Close()
	if err != nil {
		return err
	}
	defer socket.Close()
	c, err := NewConn(socket)
	if err != nil {
		return err
	}
	as, err := credential(c)
	if err == nil {
		err = s.start(c, as)
	}
	if err != nil {
		return errors.Join(err, c.Refuse(err))
	}
	return nil
}

// start starts a worker.
func (s *Service) start(c *Conn, as *syscall.Credential) error {
	uid := c.peer.Uid
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid != 0 && s.clients[uid] >= maxClients {
		return fmt.Errorf("user %d has %d requests under way already: try again later", uid, maxClients)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	errs := os.Stderr
	if f := log.File(slog.Default()); f != nil {
		errs = f
	}
	p := selfexec.Process{Name: workerArgv0, Env: os.Environ(), Files: []uintptr{null.Fd(), null.Fd(), errs.Fd(), c.file.Fd()}, As: as}
	if as != nil {
		p.Env = []string{"PATH=" + os.Getenv("PATH")}
		if ours(unix.CAP_CHECKPOINT_RESTORE) {
			p.Keep = []uintptr{unix.CAP_CHECKPOINT_RESTORE}
		}
	}
	pid, err := p.Start(selfexec.Path)
	if err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	s.clients[uid]++
	slog.Info("A client is served", "client", c.peer.Pid, "user", uid, "worker", pid)
	go s.reap(pid, uid)
	return nil
}

// reap waits for the end of a worker.
func (s *Service) reap(pid int, uid uint32) {
	if p, err := os.FindProcess(pid); err == nil {
		if state, err := p.Wait(); err == nil {
			slog.Info("A worker has ended", "worker", pid, "how", state.String())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients[uid]--; s.clients[uid] == 0 {
		delete(s.clients, uid)
	}
}

// credential is the user that the worker for a client becomes: the client's, unless that is root or ours already.
func credential(c *Conn) (*syscall.Credential, error) {
	if c.peer.Uid == 0 || int(c.peer.Uid) == os.Geteuid() {
		return nil, nil
	}
	if !ours(unix.CAP_SETUID) || !ours(unix.CAP_SETGID) {
		return nil, fmt.Errorf("this service runs as user %d and serves only it and root", os.Geteuid())
	}
	groups, err := peerGroups(c.fd())
	return &syscall.Credential{Uid: c.peer.Uid, Gid: c.peer.Gid, Groups: groups}, err
}

// ours says whether this process has a capability.
func ours(capability int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[capability/32].Permitted&(1<<(capability%32)) != 0
}

// peerGroups are the supplementary groups of the client when it connected (SO_PEERGROUPS, since Linux 4.13).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 1<<16) // NGROUPS_MAX
	size := uint32(len(groups) * 4)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("getsockopt(SO_PEERGROUPS)", errno)
	}
	return groups[:size/4], nil
}
