package restorers

import (
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// create makes the socket, or both ends of a pair.
func (u *unixFile) create(b *remote.Builder, s *Slots) {
	cloexec := s.Cloexec(u.GetId())
	u.made = u.nonblock()
	typ := int(u.GetType()) | cloexec
	ids := [2]uint32{u.GetId()}
	switch u.role {
	case unixMade:
		return
	case unixAlone:
		s.Made(b.Call(unix.SYS_SOCKET, remote.Imm(unix.AF_UNIX), remote.Imm(typ|u.made), remote.Imm(0)), u.GetId(), cloexec)
		return
	case unixMaker:
		if peer := u.set.planned[u.GetPeer()]; peer != nil {
			ids[1] = peer.GetId()
			u.made &= peer.nonblock()
			peer.made, peer.table = u.made, s.t
			defer func() { peer.other = s.Number(u.GetId()) }()
			if u.accepted() || peer.accepted() {
				u.createAccepted(b, s, peer)
				return
			}
		}
	}
	fds := b.Zero(8)
	asIDs(b, u.viewer().idsSeenBy(s.t), func() {
		op := b.Call(unix.SYS_SOCKETPAIR, remote.Imm(unix.AF_UNIX), remote.Imm(typ|u.made), remote.Imm(0), fds)
		u.table, u.other = s.t, s.MadePair(op, ids, cloexec)[1]
	})
	if u.role == unixFake && u.GetType() == unix.SOCK_DGRAM && u.GetState() == unixClosed {
		// It must be free for anybody to send to. This would flush its queue, so it comes first.
		unspec := b.Bytes(words32([]uint32{unix.AF_UNSPEC}))
		b.Call(unix.SYS_CONNECT, remote.Imm(s.Number(u.GetId())), unspec, remote.Imm(2)).Must().Discard()
	}
}

// createAccepted makes a pair of which one end has the abstract name of the listener it was accepted by. Only by being
// accepted can it get that name beside the listener, so there is another one for a moment: the listener of the set gets
// its name later.
func (u *unixFile) createAccepted(b *remote.Builder, s *Slots, peer *unixFile) {
	client, server := u, peer
	if u.accepted() {
		client, server = peer, u
	}
	addr := sockaddrUn(server.GetName())
	socket := func(flags int) remote.Op {
		return b.Call(unix.SYS_SOCKET, remote.Imm(unix.AF_UNIX), remote.Imm(int(u.GetType())|flags), remote.Imm(0))
	}
	listener := s.Keep(socket(unix.O_CLOEXEC))
	b.Call(unix.SYS_BIND, remote.Imm(listener), b.Bytes(addr), remote.Imm(len(addr))).Must().Discard()
	asIDs(b, client.idsSeenBy(s.t), func() {
		b.Call(unix.SYS_LISTEN, remote.Imm(listener), remote.Imm(1)).Must().Discard()
	})
	cloexec := s.Cloexec(client.GetId())
	s.Made(socket(u.made|cloexec), client.GetId(), cloexec)
	asIDs(b, server.idsSeenBy(s.t), func() {
		b.Call(unix.SYS_CONNECT, remote.Imm(s.Number(client.GetId())), b.Bytes(addr), remote.Imm(len(addr))).Must().Discard()
	})
	cloexec = s.Cloexec(server.GetId())
	s.Made(b.Call(unix.SYS_ACCEPT4, remote.Imm(listener), remote.Imm(0), remote.Imm(0), remote.Imm(u.made|cloexec)), server.GetId(), cloexec)
	s.drop(listener)
	u.table, u.other = s.t, s.Number(peer.GetId())
}

// attach sets options and ends directions.
func (u *unixFile) attach(b *remote.Builder, s *Slots) {
	fd, o := s.Number(u.GetId()), u.GetOpts()
	if u.GetState() == unixListen && u.set.waiting(u) > int(u.GetBacklog()) {
		u.emitListen(b, s, int(u.GetBacklog()))
	}
	if u.touched || o.GetSoBufLock() != 0 || o.GetSoSndbuf() != u.set.bufs[0] || o.GetSoRcvbuf() != u.set.bufs[1] {
		emitBufferSizes(b, fd, o)
	}
	emitPlainOptions(b, fd, o)
	if o.GetReuseaddr() {
		setOption(b, fd, unix.SO_REUSEADDR, 1, 0)
	}
	if u.made != u.nonblock() {
		b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETFL), remote.Imm(u.nonblock())).Must().Discard()
	}
	// Where the other end was closed both directions are over without this.
	if how := int(u.GetShutdown()) - 1; how >= 0 && !(u.role == unixFake && u.GetUflags()&unixService == 0) {
		b.Call(unix.SYS_SHUTDOWN, remote.Imm(fd), remote.Imm(how)).Must().Discard()
	}
}
