package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// maxRequest bounds a request in bytes; real ones have a few hundred.
const maxRequest = 256 << 10

// Conn is the connection to one client. It is not for concurrent use, except for Gone.
type Conn struct {
	file    *os.File
	peer    unix.Ucred
	inode   uint64
	pending bool // a request that was looked at still lies in the socket
}

// NewConn makes a connection of a socket, which stays open when the connection is not used any more.
func NewConn(file *os.File) (*Conn, error) {
	fd := int(file.Fd())
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && typ != unix.SOCK_SEQPACKET {
		err = errors.New("it is no socket of type SOCK_SEQPACKET")
	}
	var peer *unix.Ucred
	if err == nil {
		peer, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return &Conn{file: file, peer: *peer, inode: st.Ino}, nil
}

func (c *Conn) fd() int { return int(c.file.Fd()) }

// wait waits until the socket is ready for one of events or has been hung up, whichever happens first. The end of ctx is an
// error.
func (c *Conn) wait(ctx context.Context, events int16) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	defer context.AfterFunc(ctx, func() { w.Close() })()
	ready := []unix.PollFd{{Fd: int32(c.fd()), Events: events}, {Fd: int32(r.Fd())}}
	for {
		_, err := unix.Poll(ready, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case ready[0].Revents != 0:
			return nil
		default:
			return context.Cause(ctx)
		}
	}
}

// Next waits for a request. It stays in the socket until something is sent, so that until then this program may execute
// itself again and find it there. When the client has gone the error is io.EOF; a *FormatError is a request that is none.
func (c *Conn) Next(ctx context.Context) (*rpc.CriuReq, error) {
	c.take()
	if err := c.wait(ctx, unix.POLLIN); err != nil {
		return nil, err
	}
	size, err := c.peek(nil)
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && size == 0:
		return nil, io.EOF
	case err != nil:
		return nil, fmt.Errorf("receive a request: %w", err)
	}
	c.pending = true
	if size > maxRequest {
		return nil, &FormatError{fmt.Errorf("it has %d bytes, more than %d", size, maxRequest)}
	}
	buf := make([]byte, size)
	if _, err := c.peek(buf); err != nil {
		return nil, fmt.Errorf("receive a request: %w", err)
	}
	return decode(buf)
}

// decode understands a request.
func decode(buf []byte) (*rpc.CriuReq, error) {
	req := &rpc.CriuReq{}
	if err := req.UnmarshalVT(buf); err != nil {
		return nil, &FormatError{err}
	}
	if req.Type == nil {
		return nil, &FormatError{errors.New("it has no type")}
	}
	if err := refuseUnknown(buf); err != nil {
		return nil, &FormatError{err}
	}
	return req, nil
}

// peek looks at the next packet and returns its size.
func (c *Conn) peek(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd(), buf, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// take takes the request that was looked at off the socket.
func (c *Conn) take() {
	if c.pending {
		c.pending = false
		unix.Recvfrom(c.fd(), nil, unix.MSG_DONTWAIT)
	}
}

// send sends an answer, and a descriptor with it if there is one.
func (c *Conn) send(resp *rpc.CriuResp, with *os.File) error {
	c.take()
	msg, err := resp.MarshalVT()
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	var rights []byte
	if with != nil {
		rights = unix.UnixRights(int(with.Fd()))
	}
	if err := unix.Sendmsg(c.fd(), msg, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send an answer: %w", err)
	}
	return nil
}

// Refuse answers a client that is not served at all.
func (c *Conn) Refuse(why error) error {
	resp := &rpc.CriuResp{Type: rpc.CriuReqType_EMPTY.Enum()}
	complete(resp, why)
	return c.send(resp, nil)
}

// Gone waits until the client has gone; nil says that it has.
func (c *Conn) Gone(ctx context.Context) error { return c.wait(ctx, 0) }

// KeepOpen says whether the socket stays open in programs that this one executes.
func (c *Conn) KeepOpen(keep bool) error {
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	_, err := unix.FcntlInt(c.file.Fd(), unix.F_SETFD, flags)
	return err
}

// open opens a descriptor of the client.
func (c *Conn) open(fd int, flags int) (*os.File, error) {
	path, err := c.descriptor(fd)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flags, 0)
	var cause syscall.Errno
	if errors.As(err, &cause) {
		return nil, fmt.Errorf("descriptor %d of the client (pid %d): %w", fd, c.peer.Pid, cause)
	}
	return f, err
}

// descriptor is the name of a descriptor of the client.
func (c *Conn) descriptor(fd int) (string, error) {
	switch {
	case fd < 0:
		return "", fmt.Errorf("%d is no descriptor", fd)
	case c.peer.Pid == 0:
		return "", fmt.Errorf("descriptor %d of the client cannot be opened: it is in a process namespace that is not visible here", fd)
	}
	return fmt.Sprintf("/proc/%d/fd/%d", c.peer.Pid, fd), nil
}

// FormatError is a packet that is no request.
type FormatError struct{ Err error }

func (e *FormatError) Error() string {
	return fmt.Sprintf("the request cannot be understood: %v", e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }
