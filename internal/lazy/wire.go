package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"cryo/internal/uffd"

	"golang.org/x/sys/unix"
)

// SocketName is where a server listens that was started by hand, in the work directory.
const SocketName = "lazy-pages.socket"

// finished is the last word of a restore.
const finished = 0x52535446

// Client is the restore's end of a server.
type Client struct{ conn *net.UnixConn }

// NewClient makes a client of a connection, which it takes over.
func NewClient(conn *net.UnixConn) *Client { return &Client{conn} }

// Task hands over the userfaultfd of the task that has pid in the images and is called host here: the message comes from that
// task, as it does from restores in which tasks speak for themselves. The descriptor stays open here.
func (c *Client) Task(pid, host int, fd uffd.FD) error {
	if err := c.say(int32(pid)); err != nil {
		return err
	}
	rights := unix.UnixRights(int(fd))
	sender := unix.UnixCredentials(&unix.Ucred{Pid: int32(host), Uid: uint32(unix.Geteuid()), Gid: uint32(unix.Getegid())})
	_, _, err := c.conn.WriteMsgUnix([]byte{0}, append(sender, rights...), nil)
	if errors.Is(err, unix.EPERM) { // without CAP_SYS_ADMIN nobody speaks for others, nor makes pid namespaces
		_, _, err = c.conn.WriteMsgUnix([]byte{0}, rights, nil)
	}
	if err != nil {
		return fmt.Errorf("hand task %d over to the lazy-pages server: %w", pid, err)
	}
	return nil
}

// Dead says that a task of the images has no memory.
func (c *Client) Dead(pid int) error { return c.say(-int32(pid)) }

// Finish says that the restore is complete.
func (c *Client) Finish() error { return c.say(finished) }

// Close ends the connection: without Finish, the tasks are dead.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) say(word int32) error {
	_, err := c.conn.Write(binary.NativeEndian.AppendUint32(nil, uint32(word)))
	if errors.Is(err, unix.EPIPE) {
		return errors.New("the lazy-pages server has gone: see its log")
	}
	return err
}

// handed is one thing a restore says.
type handed struct {
	pid    int     // of a task, in the images; 0: the restore is complete
	sender int     // who said it, as this process calls it
	fd     uffd.FD // -1: it is dead
	last   bool
}

// receive reads what a restore says next; io.EOF when it has gone.
func receive(conn *net.UnixConn) (handed, error) {
	var b [4]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return handed{}, err
	}
	switch word := int32(binary.NativeEndian.Uint32(b[:])); {
	case word == finished:
		return handed{last: true}, nil
	case word < 0:
		return handed{pid: -int(word), fd: -1}, nil
	case word == 0:
		return handed{}, errors.New("the restore names a task 0")
	default:
		fd, sender, err := receiveFD(conn)
		if err != nil {
			return handed{}, fmt.Errorf("userfaultfd of task %d: %w", word, err)
		}
		return handed{pid: int(word), sender: sender, fd: fd}, nil
	}
}

// askSender makes the kernel say who sends what comes by a connection (SO_PASSCRED).
func askSender(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, failed)
}

func receiveFD(conn *net.UnixConn) (fd uffd.FD, sender int, err error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4)+unix.CmsgSpace(unix.SizeofUcred))
	_, n, _, _, err := conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return -1, 0, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, 0, err
	}
	var fds []int
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			sender = int(cred.Pid)
		} else if some, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return -1, 0, fmt.Errorf("%d descriptors came with it", len(fds))
	}
	unix.CloseOnExec(fds[0])
	return uffd.FD(fds[0]), sender, unix.SetNonblock(fds[0], true)
}
