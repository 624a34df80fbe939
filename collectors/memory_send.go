package collectors

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"cryo/internal/nsenter"
	"cryo/internal/pagecopy"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// selfSender lets a task put its own pages into the tool's socket, to a page server: the tool need not read them first. One
// program connects to the tool by a local socket, gets the other one handed through that, sends and closes both, so that
// nothing is left open in the task should the tool die on the way.
//
// The local socket is also how the task learns that it has to stop sending: it ends when the tool closes its end, or dies. So
// the task never waits for a server whose client is gone. It never gets SIGPIPE either, and what it waits by (ppoll) leaves a
// system call alone that it may have to resume.
//
// The socket's buffers are charged to the tool that made it. Where the task has seccomp rules, the tool sends.
type selfSender struct {
	*pagecopy.Task
	task *Task
	by   *SelfWriting
	door *net.UnixListener // an abstract address in the task's network namespace; nil: not opened
	open func() bool
}

// sender returns nil if the task cannot send by itself. Whether it may is found out when there is much to send.
func (by *SelfWriting) sender(src *pagecopy.Task, t *Task) *selfSender {
	if by == nil || t.Session == nil {
		return nil
	}
	s := &selfSender{Task: src, task: t, by: by}
	s.open = sync.OnceValue(func() bool { return mayRun(t) && s.openDoor() == nil })
	return s
}

// Ready says whether the task may send by itself.
func (s *selfSender) Ready() bool { return s.open() }

// openDoor listens where the task can connect to.
func (s *selfSender) openDoor() error {
	ns, err := nsenter.OtherNet(s.task.Pid)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	return nsenter.Net(ns, func() error {
		s.door, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix"}) // the kernel finds a name
		return err
	})
}

// close closes the door.
func (s *selfSender) close() {
	if s.door != nil {
		s.door.Close()
	}
}

// SendPages runs the program. If it could not do all, or another task has its turn, the tool does the rest.
func (s *selfSender) SendPages(ctx context.Context, to syscall.Conn, r pagecopy.Range) (int64, error) {
	select {
	case s.by.turn <- struct{}{}:
		defer func() { <-s.by.turn }()
	default:
		return 0, nil
	}
	defer context.AfterFunc(ctx, func() { s.door.Close() })() // the program ends if it waits there
	ended, handed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(handed)
		s.hand(ctx, to, ended)
	}()
	program, left := s.program(r)
	res, err := s.by.run(s.task.Session, program)
	close(ended)
	s.door.SetDeadline(time.Unix(1, 0))
	<-handed
	s.door.SetDeadline(time.Time{})
	if err != nil {
		return 0, fmt.Errorf("task %d sends its pages: %w", s.task.Pid, err)
	}
	return int64(r.Len - res.Uint64(left)), nil
}

// hand waits for the task, hands it the socket, and keeps its connection until the program has ended.
func (s *selfSender) hand(ctx context.Context, to syscall.Conn, ended <-chan struct{}) {
	for {
		conn, err := s.door.AcceptUnix()
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				s.door.Close() // or the task would wait for an answer
			}
			return
		}
		if !peerIs(conn, s.task.Pid) || handSocket(conn, to) != nil {
			conn.Close()
			continue
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
		conn.Close()
		return
	}
}

// peerIs says whether the other end of a local connection was made by process pid.
func peerIs(conn *net.UnixConn, pid int) (yes bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		yes = err == nil && int(cred.Pid) == pid
	})
	return yes
}

// handSocket sends a socket through a local connection.
func handSocket(conn *net.UnixConn, socket syscall.Conn) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { _, _, sent = conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, sent)
}

// program sends a range. left is how many bytes it did not manage to send.
func (s *selfSender) program(r pagecopy.Range) (p *remote.Program, left remote.Ref) {
	b := remote.NewBuilder("send pages")
	end, hangUp, closeBoth := b.NewLabel(), b.NewLabel(), b.NewLabel()
	left = b.InOut(binary.NativeEndian.AppendUint64(nil, r.Len))

	conn := b.Call(unix.SYS_SOCKET, remote.Imm(unix.AF_UNIX), remote.Imm(unix.SOCK_STREAM|unix.SOCK_CLOEXEC), remote.Imm(0))
	b.JumpIf(conn, remote.Less, remote.Imm(0), end)
	addr := append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), s.door.Addr().String()...)
	addr[2] = 0 // written as @
	b.JumpIf(b.Call(unix.SYS_CONNECT, conn, b.Bytes(addr), remote.Imm(len(addr))), remote.Less, remote.Imm(0), hangUp)
	socket := receiveDescriptor(b, conn, hangUp)
	sendAll(b, conn, socket, r.Addr, left, closeBoth)
	b.Label(closeBoth)
	b.Call(unix.SYS_CLOSE, socket)
	b.Label(hangUp)
	b.Call(unix.SYS_CLOSE, conn)
	b.Label(end)
	return b.Program(), left
}

// receiveDescriptor adds what receives a byte and a descriptor, or goes on at failed.
func receiveDescriptor(b *remote.Builder, conn remote.Op, failed remote.Label) remote.Op {
	const cmsgLen = unix.SizeofCmsghdr + 4
	msg, iov, char, control := b.Zero(unix.SizeofMsghdr), b.Zero(unix.SizeofIovec), b.Zero(1), b.Zero(cmsgLen+4)
	b.Store(iov, char)
	b.Store(iov.At(8), remote.Imm(1))
	b.Store(msg.At(16), iov)
	b.Store(msg.At(24), remote.Imm(1))
	b.Store(msg.At(32), control)
	b.Store(msg.At(40), remote.Imm(cmsgLen+4))
	got := b.Call(unix.SYS_RECVMSG, conn, msg, remote.Imm(unix.MSG_CMSG_CLOEXEC))
	b.JumpIf(got, remote.Ne, remote.Imm(1), failed)
	b.JumpIf(b.Load32(control), remote.Ne, remote.Imm(cmsgLen), failed)
	return b.Load32(control.At(unix.SizeofCmsghdr))
}

// sendAll adds what sends left bytes from addr on into socket, until that fails or conn is closed.
func sendAll(b *remote.Builder, conn, socket remote.Op, addr uint64, left remote.Ref, done remote.Label) {
	again, stuck := b.NewLabel(), b.NewLabel()
	at := b.InOut(binary.NativeEndian.AppendUint64(nil, addr))
	polled := b.InOut(make([]byte, 16)) // struct pollfd, twice
	const word = 4                      // events and revents
	b.Store32(polled, socket)
	b.Store32(polled.At(word), remote.Imm(unix.POLLOUT))
	b.Store32(polled.At(8), conn)

	b.Label(again)
	n := b.Call(unix.SYS_SENDTO, socket, remote.Mem(at), remote.Mem(left), remote.Imm(unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT),
		remote.Imm(0), remote.Imm(0))
	b.JumpIf(n, remote.Less, remote.Imm(1), stuck)
	b.Store(at, b.Add(remote.Mem(at), n))
	rest := b.Sub(remote.Mem(left), n)
	b.Store(left, rest)
	b.JumpIf(rest, remote.Ne, remote.Imm(0), again)
	b.Jump(done)

	b.Label(stuck)
	b.JumpIf(n, remote.Ne, remote.Imm(-int64(unix.EAGAIN)), done)
	b.Call(unix.SYS_PPOLL, polled, remote.Imm(2), remote.Imm(0), remote.Imm(0), remote.Imm(0))
	b.JumpIf(b.Load32(polled.At(8+word)), remote.Eq, remote.Imm(0), again) // no news of conn
}
