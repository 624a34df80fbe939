package restorers

import (
	"context"
	"errors"
	"fmt"

	"cryo/internal/remote"

	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// emitConnect connects to a listener; the connection waits there to be accepted. It is the owner who connects, for the
// kernel notes who did.
func (u *unixFile) emitConnect(b *remote.Builder, s *Slots) error {
	peer := u.set.entries[u.GetPeer()]
	if u.role != unixAlone || u.GetType() == unix.SOCK_DGRAM || peer == nil {
		return nil
	}
	addr := sockaddrUn(peer.GetName())
	if l := u.set.planned[u.GetPeer()]; l != nil && l.handle >= 0 {
		addr = sockaddrUn(fmt.Appendf(nil, "/proc/%d/fd/%d", s.plan.tool, l.handle))
	} else if name := unixPath(peer); name != "" {
		addr = sockaddrUn([]byte(name))
	}
	asIDs(b, idsOf(s.t), func() {
		b.Call(unix.SYS_CONNECT, remote.Imm(s.Number(u.GetId())), b.Bytes(addr), remote.Imm(len(addr))).Must().Discard()
	})
	return nil
}

func (u *unixFile) stream() bool { return u.GetType() == unix.SOCK_STREAM }

// outlet opens the other end; or, of a datagram socket that anybody may send to, one that has the address a message
// comes from.
func (u *unixFile) outlet(open opener, from []byte) (*outlet, error) {
	if u.role != unixAlone {
		var wide *bool
		if peer := u.set.planned[u.GetPeer()]; peer != nil {
			wide = &peer.touched
		}
		fd, err := open(u.table, u.other)
		if err == nil && u.role == unixFake && from != nil {
			bindRaw(fd, sockaddrUn(from)) // the name may be somebody's by now: it goes without, then
		}
		return &outlet{fd: fd, handle: -1, wide: wide}, err
	}
	if u.GetType() != unix.SOCK_DGRAM || len(u.GetName()) == 0 {
		return nil, errors.New("nothing can be sent to it")
	}
	to, handle, err := u.address(open)
	if err != nil {
		return nil, err
	}
	out := &outlet{to: to, handle: handle}
	if out.fd, out.wide, err = u.set.sender(open, u, from); err != nil {
		unix.Close(handle)
		return nil, err
	}
	return out, nil
}

// address is what the tool can reach the socket by, as long as it has the handle; -1: none is needed.
func (u *unixFile) address(open opener) (addr []byte, handle int, err error) {
	if unixPath(u.UnixSkEntry) == "" {
		return sockaddrUn(u.GetName()), -1, nil
	}
	f := u.set.plan.Files[u.GetId()]
	fd, err := open(f.At, f.FD)
	if err != nil {
		return nil, -1, err
	}
	defer unix.Close(fd)
	file, err := u.file(fd)
	if err != nil {
		return nil, -1, fmt.Errorf("file of unix socket %s: %w", u.printable(), err)
	}
	return sockaddrUn([]byte(link(file))), file, nil
}

// sender opens a socket for messages to u to come from: the one that has the address, or a new one with it. Where the
// set does not tell addresses it is one that is connected to u, if there is any.
func (s *unixSet) sender(open opener, u *unixFile, from []byte) (fd int, wide *bool, err error) {
	candidates := s.byPeer[u.GetIno()]
	if from != nil {
		candidates = s.order
	}
	for _, c := range candidates {
		if c.role == unixAlone && c.GetType() == unix.SOCK_DGRAM && (from == nil || string(c.GetName()) == string(from)) {
			f := s.plan.Files[c.GetId()]
			fd, err = open(f.At, f.FD)
			return fd, &c.touched, err
		}
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil || len(from) == 0 {
		return fd, nil, err
	}
	if from[0] == 0 {
		bindRaw(fd, sockaddrUn(from)) // the name may be somebody's by now: it goes without, then
		return fd, nil, nil
	}
	name := &unixFile{UnixSkEntry: &sk_unix.UnixSkEntry{Name: from}}
	return fd, nil, onOwnThread(func(w *binder) error { return w.hidden(fd, name) })
}

// unixConnector connects datagram sockets when their queues are filled. It makes no difference to the kernel who does.
type unixConnector struct{ *unixSet }

func (c unixConnector) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	done := map[*unixFile]bool{}
	for _, u := range c.order {
		if err := c.connect(ctx, u, done, open); err != nil {
			return err
		}
	}
	return nil
}

// connect connects a socket, and before it those that are connected to it: a socket that has a peer takes no other.
func (c unixConnector) connect(ctx context.Context, u *unixFile, done map[*unixFile]bool, open opener) error {
	if done[u] {
		return ctx.Err()
	}
	done[u] = true
	if u.GetUflags()&unixService != 0 {
		return u.answer(open)
	}
	if u.role != unixAlone || u.GetType() != unix.SOCK_DGRAM || u.GetPeer() == 0 {
		return nil
	}
	for _, before := range c.byPeer[u.GetIno()] {
		if err := c.connect(ctx, before, done, open); err != nil {
			return err
		}
	}
	f := c.plan.Files[u.GetId()]
	fd, err := open(f.At, f.FD)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := c.connectTo(fd, u.GetPeer(), open); err != nil {
		return fmt.Errorf("connect unix socket %s: %w", u.printable(), err)
	}
	return nil
}

func (c unixConnector) connectTo(fd int, ino uint32, open opener) error {
	peer := c.planned[ino]
	if peer == nil { // outside
		return connectRaw(fd, sockaddrUn(c.entries[ino].GetName()))
	}
	addr, handle, err := peer.address(open)
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	return connectRaw(fd, addr)
}

// answer gives a task that had asked for the dump itself what criu answers it: it has been restored.
func (u *unixFile) answer(open opener) error {
	msg, err := (&rpc.CriuResp{Type: rpc.CriuReqType_DUMP.Enum(), Success: proto.Bool(true), Dump: &rpc.CriuDumpResp{Restored: proto.Bool(true)}}).MarshalVT()
	if err != nil {
		return err
	}
	fd, err := open(u.table, u.other)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return (&outlet{fd: fd}).send(msg, nil, u.stream())
}
