package restorers

import (
	"fmt"
	"strings"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
)

// Unix restores unix sockets.
//
// The task that owns a socket makes it at Open; of a connected pair it is the first owner of the two who makes both.
// Then the tool gives them their names (unixbind.go), as that takes a look at directories as they were and files that
// are there for a moment only. Listening (Pair) and connecting to a listener (Fill) is up to the owner again, for the
// kernel notes whose credentials the other side is to see. What waits in queues is sent by the tool, which then connects
// datagram sockets (unixfill.go). Options and shutdowns come last.
type Unix struct{}

// States of a socket.
const (
	unixEstablished = 1
	unixClosed      = 7
	unixListen      = 10
)

// Flags of an entry (uflags).
const (
	unixExternal = 1 << 0 // stands for a socket outside: a name to connect to
	unixService  = 1 << 1 // was connected to the service that made the dump; gets its answer
	unixCallback = 1 << 2 // is made by a plugin of criu
)

// unixRole is how a socket comes to be.
type unixRole int

const (
	unixAlone  unixRole = iota // by socket(2)
	unixMaker                  // by socketpair(2), together with its peer
	unixMade                   // by its peer's maker
	unixFake                   // by socketpair(2), with another end that nobody has
	unixHanded                 // it is handed in by the user
)

// unixSet is all unix sockets of a set.
type unixSet struct {
	entries   map[uint32]*sk_unix.UnixSkEntry // by inode number
	listeners map[string]bool                 // names of all that listen
	planned   map[uint32]*unixFile            // by inode number
	order     []*unixFile
	queues    *skQueues
	paths     *Paths
	plan      *FilePlan
	bufs      [2]uint32              // sizes of the buffers of a fresh socket
	byPeer    map[uint32][]*unixFile // planned ones, by the inode number of the socket they are connected to
	byPID     map[int]*Table         // see tables
}

// unixFile is a socket that is to be made.
type unixFile struct {
	*sk_unix.UnixSkEntry
	set  *unixSet
	role unixRole
	tool int // descriptor of the tool that is handed out, -1: none

	made    int    // flags it has been made with
	table   *Table // whose task made both ends, for unixMaker and unixFake
	other   int    // the number of the other end there, from Open to Attach
	handle  int    // the tool's handle on the file it is bound to, for others to connect; -1: none
	touched bool   // its buffers are not those of a fresh socket any more
}

// unixAll reads the entries of all unix sockets.
func unixAll(p *FilePlanner) (*unixSet, error) {
	type key struct{}
	return Shared(p, key{}, func() (*unixSet, error) {
		u := &unixSet{listeners: map[string]bool{}, entries: map[uint32]*sk_unix.UnixSkEntry{}, planned: map[uint32]*unixFile{}, byPeer: map[uint32][]*unixFile{},
			paths: p.Paths, plan: p.plan}
		for _, e := range p.Set.Files {
			if e.GetType() != fdinfo.FdTypes_UNIXSK {
				continue
			}
			us := e.GetUsk()
			if err := checkUnix(us); err != nil {
				return nil, image.Errorf(image.Files.File(0), -1, "id %d: %w", e.GetId(), err)
			}
			if u.entries[us.GetIno()] != nil {
				return nil, image.Errorf(image.Files.File(0), -1, "id %d: ino %d is there twice", e.GetId(), us.GetIno())
			}
			u.entries[us.GetIno()] = us
			if us.GetState() == unixListen && us.GetUflags()&unixExternal == 0 {
				u.listeners[string(us.GetName())] = true
			}
		}
		var err error
		if u.queues, err = planQueues(p); err != nil {
			return nil, err
		}
		p.plan.after(Open, unixBinder{u})
		p.plan.after(Fill, unixConnector{u})
		u.bufs, err = freshBuffers()
		return u, err
	})
}

// freshBuffers are the sizes of the buffers that the kernel gives to a new socket.
func freshBuffers() (sizes [2]uint32, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sizes, fmt.Errorf("make a unix socket: %w", err)
	}
	defer unix.Close(fd)
	for i, option := range [2]int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return sizes, fmt.Errorf("size of a socket's buffer: %w", err)
		}
		sizes[i] = uint32(n)
	}
	return sizes, nil
}

// checkUnix refuses what no socket can be.
func checkUnix(e *sk_unix.UnixSkEntry) error {
	const maxName = 108 // sun_path
	switch {
	case e == nil:
		return fmt.Errorf("it has no usk")
	case e.GetType() != unix.SOCK_STREAM && e.GetType() != unix.SOCK_DGRAM && e.GetType() != unix.SOCK_SEQPACKET:
		return fmt.Errorf("type %d is none of a unix socket", e.GetType())
	case e.GetState() != unixEstablished && e.GetState() != unixClosed && e.GetState() != unixListen:
		return fmt.Errorf("state %d is none of a unix socket", e.GetState())
	case e.GetShutdown() < 0 || e.GetShutdown() > 3:
		return fmt.Errorf("shutdown %d is not known", e.GetShutdown())
	case len(e.GetName()) > maxName+1:
		return fmt.Errorf("a name of %d bytes", len(e.GetName()))
	case unixPath(e) != "" && len(unixPath(e)) > maxName:
		return fmt.Errorf("a name of %d bytes", len(e.GetName()))
	case e.GetBacklog() > 1<<31-1 && e.GetState() == unixListen:
		return fmt.Errorf("backlog %d is larger than any", e.GetBacklog())
	case e.GetUflags()&unixExternal != 0:
		return nil
	case e.NameDir != nil && (!strings.HasPrefix(e.GetNameDir(), "/") || strings.ContainsRune(e.GetNameDir(), 0) || len(e.GetNameDir()) >= unix.PathMax):
		return fmt.Errorf("name_dir %.100q is no absolute path", e.GetNameDir())
	case e.GetDeleted() && unixPath(e) == "":
		return fmt.Errorf("it is deleted, but has no path")
	}
	return checkSocketOptions(e.GetOpts())
}

// unixPath is the path a socket is bound to, "" for an abstract name or none.
func unixPath(e *sk_unix.UnixSkEntry) string {
	name, _, _ := strings.Cut(string(e.GetName()), "\x00")
	return name
}

// Plan notes the socket and what its queue holds.
func (Unix) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	set, err := unixAll(p)
	if err != nil {
		return nil, err
	}
	us := e.GetUsk()
	u := &unixFile{UnixSkEntry: us, set: set, tool: -1, handle: -1}
	if us.GetId() != e.GetId() {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: usk has id %d", e.GetId(), us.GetId())
	}
	if fd, ok := p.Paths.inherited(fmt.Sprintf("socket:[%d]", us.GetIno())); ok {
		u.tool, u.role = fd, unixHanded
	}
	if u.role != unixHanded && us.GetUflags()&unixCallback != 0 {
		return nil, fmt.Errorf("unix socket %d was dumped by a plugin of criu: hand it in with --inherit-fd fd[N]:socket:[%[1]d]", us.GetIno())
	}
	if us.GetUflags()&unixExternal != 0 {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d stands for a socket outside and cannot be a task's", e.GetId())
	}
	if u.role != unixHanded {
		set.queues.to[us.GetId()] = u
	}
	set.planned[us.GetIno()] = u
	set.order = append(set.order, u)
	set.byPeer[us.GetPeer()] = append(set.byPeer[us.GetPeer()], u)
	return u, nil
}

// Needs is what is on the way to the socket.
func (u *unixFile) Needs() []uint32 {
	if u.role == unixHanded {
		return nil
	}
	return u.set.queues.rights(u.GetId())
}

// Settle decides how the socket comes to be.
func (u *unixFile) Settle(p *FilePlanner) error {
	if u.role == unixHanded || u.role == unixMade {
		return nil
	}
	peer := u.set.entries[u.GetPeer()]
	switch {
	case u.GetUflags()&unixService != 0:
		u.role = unixFake
	case u.GetPeer() == 0:
		u.settleAlone(p)
	case peer == nil:
		return image.Errorf(image.Files.File(0), -1, "id %d: peer %d is no socket of the set", u.GetId(), u.GetPeer())
	case peer.GetUflags()&unixExternal != 0:
		return u.settleOutside(p, peer)
	case peer.GetType() != u.GetType():
		return image.Errorf(image.Files.File(0), -1, "id %d: its peer %d is of another type", u.GetId(), u.GetPeer())
	case peer != u.UnixSkEntry && peer.GetPeer() == u.GetIno():
		return u.settlePair(p)
	case u.GetType() == unix.SOCK_DGRAM && len(peer.GetName()) > 0:
	case u.GetState() == unixEstablished && u.GetType() != unix.SOCK_DGRAM && peer.GetState() == unixListen && len(peer.GetName()) > 0:
	default:
		return image.Errorf(image.Files.File(0), -1, "id %d: its peer %d is neither connected to it nor can be by a name", u.GetId(), u.GetPeer())
	}
	return u.checkName()
}

// settleAlone is for a socket that is connected to nothing. Another end is made where the real one was closed, and where
// nothing but another end can reach its queue. The state of a datagram socket says little: since Linux 5.15 it is
// established too once somebody has connected to it.
func (u *unixFile) settleAlone(p *FilePlanner) {
	u.seenPID(p)
	switch {
	case u.GetType() != unix.SOCK_DGRAM && u.GetState() == unixEstablished:
		u.role = unixFake
	case u.GetType() == unix.SOCK_DGRAM && len(u.GetName()) == 0 && (u.set.queues.has(u.GetId()) || u.GetState() == unixEstablished):
		u.role = unixFake
	}
}

// settlePair makes this one the maker of both, as it is met first.
func (u *unixFile) settlePair(p *FilePlanner) error {
	u.role = unixMaker
	if err := u.checkName(); err != nil {
		return err
	}
	peer := u.set.planned[u.GetPeer()]
	if peer == nil { // nobody has it any more
		u.seenPID(p)
		return nil
	}
	if peer.role == unixHanded {
		return fmt.Errorf("unix socket %d is connected to %d, which was handed in by --inherit-fd: both have to be", u.GetIno(), u.GetPeer())
	}
	peer.role = unixMade
	u.seenPID(p)
	for _, end := range []*unixFile{u, peer} {
		if end.accepted() {
			return u.moveTo(p, string(end.GetName()))
		}
	}
	return peer.checkName()
}

// moveTo lets the same task make all pairs that have a name in common, as they have to be made one after the other.
func (u *unixFile) moveTo(p *FilePlanner, name string) error {
	f := p.File(u.GetId())
	owner, err := Shared(p, unixName(name), func() (*Table, error) { return f.Owner, nil })
	f.Owner = owner
	return err
}

type unixName string

func (u *unixFile) settleOutside(p *FilePlanner, peer *sk_unix.UnixSkEntry) error {
	switch {
	case !p.Opt.ExtUnixSk:
		return fmt.Errorf("unix socket %d is connected to one that stayed outside of the dump: --ext-unix-sk connects it to %q, or hand it in with --inherit-fd fd[N]:socket:[%[1]d]",
			u.GetIno(), unixPath(peer))
	case len(peer.GetName()) == 0:
		return fmt.Errorf("unix socket %d is connected to one without a name that stayed outside of the dump: hand it in with --inherit-fd fd[N]:socket:[%[1]d]", u.GetIno())
	}
	return u.checkName()
}

// Parks counts the ends that are kept for others, or for nobody.
func (u *unixFile) Parks(t *Table) int {
	n := 0
	if t.first(u.GetId()) < 0 {
		n++
	}
	switch {
	case u.role == unixFake:
		n++
	case u.role == unixMaker:
		if peer := u.set.planned[u.GetPeer()]; peer == nil || t.first(peer.GetId()) < 0 {
			n++
		}
	}
	return n
}

func (u *unixFile) nonblock() int { return int(u.GetFlags()) & unix.O_NONBLOCK }

// Emit makes the socket at Open, lets it listen or connect, and sets its options at Attach.
func (u *unixFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if u.role == unixHanded {
		if lv == Open {
			s.FromTool(u.tool, u.GetId())
		}
		return nil
	}
	switch lv {
	case Open:
		u.create(b, s)
	case Pair:
		if u.GetState() == unixListen {
			u.emitListen(b, s, max(int(u.GetBacklog()), u.set.waiting(u)))
		}
	case Fill:
		return u.emitConnect(b, s)
	case Attach:
		u.attach(b, s)
	}
	return nil
}

// emitListen lets the socket listen, in the name of whom its clients are to see.
func (u *unixFile) emitListen(b *remote.Builder, s *Slots, backlog int) {
	asIDs(b, u.idsSeenBy(s.t), func() {
		b.Call(unix.SYS_LISTEN, remote.Imm(s.Number(u.GetId())), remote.Imm(backlog)).Must().Discard()
	})
}

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
