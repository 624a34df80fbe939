package collectors

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/poll"
	"cryo/internal/sockdiag"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Unix collects unix sockets: their own entries here, what waits in their queues in skqueue.go, their names in
// unixname.go, who is connected to whom in unixpeer.go.
type Unix struct{}

// Match takes open sockets of the family.
func (Unix) Match(p *Probe) bool { return p.Domain == unix.AF_UNIX }

// unixSockets is what is known of unix sockets.
type unixSockets struct {
	namespaces map[uint64]bool        // inode numbers of the network namespaces that have been listed
	sockets    map[uint32]*unixSocket // by inode number: all of those namespaces
	listeners  map[uint32]*unixSocket // by the inode number of a socket that waits to be accepted there
	collected  []*unixSocket          // in the order they were met
}

// unixSocket is one of them.
type unixSocket struct {
	sockdiag.Unix
	netNS uint32 // number of its network namespace; 0 for one that no task is in

	// Of one that is collected.
	entry *sk_unix.UnixSkEntry
	probe *Probe
}

func newUnixSockets() *unixSockets {
	return &unixSockets{namespaces: map[uint64]bool{}, sockets: map[uint32]*unixSocket{}, listeners: map[uint32]*unixSocket{}}
}

// Ask asks whom the kernel says the other end belongs to; of a listener, who listens.
func (Unix) Ask(_ *Probe, fd int) (any, error) {
	return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
}

// Collect makes a unix_sk_entry and stores what waits to be received.
func (Unix) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	own := notOwned(p)
	defer own.close()
	s, err := f.unix.lookup(f.env, &own)
	if err != nil {
		return nil, err
	}
	if err := s.refuse(p); err != nil {
		return nil, err
	}
	s.probe, s.entry = p, &sk_unix.UnixSkEntry{
		Id: proto.Uint32(id), Ino: proto.Uint32(s.Ino), Type: proto.Uint32(uint32(s.Type)), State: proto.Uint32(uint32(s.State)),
		Flags: proto.Uint32(p.Flags), Uflags: proto.Uint32(0), Backlog: proto.Uint32(s.WQueue), Peer: proto.Uint32(s.Peer),
		Fown: p.Owner, Name: s.Name, NsId: proto.Uint32(s.netNS),
	}
	if s.Shutdown != 0 {
		s.entry.Shutdown = sk_opts.SkShutdown(s.Shutdown).Enum()
	}
	if s.entry.Name == nil {
		s.entry.Name = []byte{}
	}
	if s.entry.Opts, err = p.socketOptions(); err != nil {
		return nil, err
	}
	if err := s.peerCreds(f.env); err != nil {
		return nil, err
	}
	if err := s.resolveName(&own); err != nil {
		return nil, err
	}
	f.unix.collected = append(f.unix.collected, s)
	if err := f.unixQueue(s, &own, id); err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Usk: s.entry}, f.unix.waiting(s)
}

// refuse says what of a socket no image can hold.
func (s *unixSocket) refuse(p *Probe) error {
	switch {
	case s.Type != unix.SOCK_STREAM && s.Type != unix.SOCK_DGRAM && s.Type != unix.SOCK_SEQPACKET:
		return p.Obstacle(fmt.Sprintf("%s of unknown type %d", s, s.Type), "")
	case s.State != sockdiag.Established && s.State != sockdiag.Closed && s.State != sockdiag.Listen:
		return p.Obstacle(fmt.Sprintf("%s in unknown state %d", s, s.State), "")
	case s.netNS == 0:
		return p.Obstacle(fmt.Sprintf("%s of a network namespace that no task is in", s), "")
	}
	for _, ino := range s.Icons {
		if ino == 0 {
			return p.Obstacle(s.String()+" with a connection that was closed before it was accepted", "let the program accept it first")
		}
	}
	return nil
}

// peerCreds notes what Ask has found out.
func (s *unixSocket) peerCreds(env *Env) error {
	if err := s.probe.answerErr; err != nil {
		return fmt.Errorf("credentials of the peer of %s: %w", s, err)
	}
	if u := s.probe.answer.(*unix.Ucred); u.Pid != 0 {
		image.SetPeerCreds(s.entry, &image.PacketCreds{PID: uint32(env.PIDNS.Inner(int(u.Pid))), UID: u.Uid, GID: u.Gid})
	}
	return nil
}

// lookup finds the socket in the kernel's list. A network namespace is listed when the first socket of it is met; the
// tasks are stopped by then.
func (u *unixSockets) lookup(env *Env, own *ownFD) (*unixSocket, error) {
	p := own.probe
	ino := uint32(p.Stat.Ino)
	if s := u.sockets[ino]; s != nil {
		return s, nil
	}
	fd, err := own.get()
	if err != nil {
		return nil, err
	}
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("network namespace of a socket: %w (it takes CAP_NET_ADMIN there)", err)
	}
	defer unix.Close(ns)
	number, err := u.list(env, ns)
	if err != nil {
		return nil, err
	}
	if s := u.sockets[ino]; s != nil {
		return s, nil
	}
	one, err := sockdiag.UnixSocket(ns, ino) // the list had a gap where sockets of others ended
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Where(), err)
	}
	return u.add(one, number), nil
}

// list reads the sockets of a network namespace, once, and returns its number.
func (u *unixSockets) list(env *Env, ns int) (number uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	number, _ = env.Namespaces.ByInode("net", st.Ino)
	if u.namespaces[st.Ino] {
		return number, nil
	}
	u.namespaces[st.Ino] = true
	list, err := sockdiag.UnixSockets(ns)
	if err != nil {
		return 0, err
	}
	for _, s := range list {
		u.add(s, number)
	}
	return number, nil
}

// add notes a socket of the network namespace with a number.
func (u *unixSockets) add(s sockdiag.Unix, netNS uint32) *unixSocket {
	us := &unixSocket{Unix: s, netNS: netNS}
	u.sockets[s.Ino] = us
	for _, ino := range s.Icons {
		u.listeners[ino] = us
	}
	return us
}

// unixQueue stores what waits in the queue of a socket.
func (f *Files) unixQueue(s *unixSocket, own *ownFD, id uint32) error {
	if s.State == sockdiag.Listen {
		return nil // that are connections
	}
	if s.RQueue == 0 && s.Type == unix.SOCK_STREAM {
		return nil
	}
	fd, err := own.get()
	if err != nil {
		return err
	}
	events, err := poll.Now(fd, unix.POLLIN|unix.POLLPRI)
	if err != nil {
		return fmt.Errorf("poll %s: %w", s, err)
	}
	switch {
	case events&unix.POLLPRI != 0: // Linux 5.15
		return s.probe.Obstacle(s.String()+" with out-of-band data, which the images cannot hold", "let the program read them first")
	case s.RQueue == 0 && (events&unix.POLLIN == 0 || events&unix.POLLERR != 0):
		return nil // Messages of no bytes are not counted. Where an error is pending a look would take it away.
	}
	pk, err := newPeeker(fd, int(s.Type))
	if err != nil {
		return err
	}
	f.storeQueue(pk, s.probe, id)
	if s.Type == unix.SOCK_STREAM {
		err = pk.stream(int(s.RQueue))
	} else {
		err = pk.messages(int(s.RQueue), s.Shutdown&1 != 0)
	}
	if cerr := pk.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("queue of %s: %w", s, err)
	}
	return nil
}

func (s *unixSocket) String() string {
	kind := map[uint8]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "datagram", unix.SOCK_SEQPACKET: "sequential-packet"}[s.Type]
	if len(s.Name) == 0 {
		return fmt.Sprintf("unix %s socket %d", kind, s.Ino)
	}
	return fmt.Sprintf("unix %s socket %d (%s)", kind, s.Ino, printable(s.Name))
}
