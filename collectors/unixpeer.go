package collectors

import (
	"fmt"
	"slices"

	"cryo/internal/sockdiag"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// usk flags of an entry.
const (
	unixExternal = 1 // stands for a socket that stays outside
	unixService  = 2 // was connected to us: the task asked for its own dump, and gets the answer when it is restored
)

// waiting completes the entry of a connection that has not been accepted yet: its peer in the image is the listener.
func (u *unixSockets) waiting(s *unixSocket) error {
	if s.State != sockdiag.Established || s.Type == unix.SOCK_DGRAM || s.Peer != 0 {
		return nil
	}
	l := u.listeners[s.Ino]
	switch {
	case l != nil && s.WQueue != 0:
		return s.probe.Obstacle(fmt.Sprintf("%s, which has sent data over a connection that has not been accepted: they cannot be read", s),
			"let the program accept it first")
	case l != nil:
		s.entry.Peer = proto.Uint32(l.Ino)
	case s.Shutdown != 3:
		return s.probe.Obstacle(fmt.Sprintf("%s, whose connection nobody has the other end of", s), "")
	}
	return nil
}

// finish looks at the other ends of all collected sockets: those that stay outside get an entry of their own where the
// user lets them, and are obstacles where not. Every entry comes behind that of its peer in the end, as criu wants it.
func (u *unixSockets) finish(f *Files) error {
	outside := map[uint32]bool{}
	for _, s := range u.collected {
		ino := s.entry.GetPeer()
		if ino == 0 {
			continue
		}
		if uint64(ino) == f.env.Options.ServiceSocket {
			s.entry.Uflags, s.entry.Peer = proto.Uint32(unixService), proto.Uint32(0)
			s.entry.State = proto.Uint32(sockdiag.Closed)
			continue
		}
		peer := u.sockets[ino]
		if peer == nil {
			f.env.Obstacles.Add(s.probe.Obstacle(fmt.Sprintf("%s, connected to socket %d of another network namespace", s, ino), ""))
			continue
		}
		if peer.entry != nil && !outside[ino] {
			continue
		}
		if o, ok := s.external(f.env, peer); !ok {
			f.env.Obstacles.Add(o)
			continue
		}
		if !outside[ino] {
			outside[ino] = true
			peer.entry = externalEntry(peer, f.FreshID())
			f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_UNIXSK.Enum(), Id: peer.entry.Id, Usk: peer.entry})
		}
	}
	u.order(f.entries)
	return nil
}

// external decides whether the other end of a socket may stay outside.
func (s *unixSocket) external(env *Env, peer *unixSocket) (Obstacle, bool) {
	name := fmt.Sprintf("unix[%d]", s.Ino)
	o := &env.Options.ExtUnixSk
	if env.External(name) || slices.Contains(o.Inodes, uint64(s.Ino)) {
		return Obstacle{}, true
	}
	what := fmt.Sprintf("%s, connected to %s outside of the tree", s, peer)
	byName := fmt.Sprintf("--external %s, and --inherit-fd fd[N]:socket:[%d] on restore", name, s.Ino)
	switch {
	case peer.Type != unix.SOCK_DGRAM:
		return s.probe.Obstacle(what, byName), false
	case len(peer.Name) == 0:
		return s.probe.Obstacle(what+", which has no name to connect to again", byName), false
	case !o.Allow:
		return s.probe.Obstacle(what, "--ext-unix-sk"), false
	}
	return Obstacle{}, true
}

// externalEntry stands for a socket outside: a name to connect to. The rest is what criu writes there.
func externalEntry(s *unixSocket, id uint32) *sk_unix.UnixSkEntry {
	zero := proto.Uint32(0)
	zero64 := proto.Uint64(0)
	name := s.Name
	if name == nil {
		name = []byte{}
	}
	return &sk_unix.UnixSkEntry{
		Id: proto.Uint32(id), Ino: proto.Uint32(s.Ino), Type: proto.Uint32(unix.SOCK_DGRAM), State: proto.Uint32(sockdiag.Listen),
		Flags: zero, Uflags: proto.Uint32(unixExternal), Backlog: zero, Peer: zero, Fown: noOwner(), Name: name,
		Opts: &sk_opts.SkOptsEntry{
			SoSndbuf: zero, SoRcvbuf: zero, SoSndTmoSec: zero64, SoSndTmoUsec: zero64, SoRcvTmoSec: zero64, SoRcvTmoUsec: zero64,
		},
	}
}

// order sorts the entries of unix sockets among the places they have, so that each comes behind its peer.
func (u *unixSockets) order(entries []*fdinfo.FileEntry) {
	byIno := map[uint32]*fdinfo.FileEntry{}
	var places []int
	for i, e := range entries {
		if e.GetUsk() != nil {
			byIno[e.GetUsk().GetIno()] = e
			places = append(places, i)
		}
	}
	var sorted []*fdinfo.FileEntry
	done := map[uint32]bool{}
	for _, i := range places {
		var behind []*fdinfo.FileEntry
		for e := entries[i]; e != nil && !done[e.GetUsk().GetIno()]; e = byIno[e.GetUsk().GetPeer()] {
			done[e.GetUsk().GetIno()] = true
			behind = append(behind, e)
		}
		slices.Reverse(behind)
		sorted = append(sorted, behind...)
	}
	for n, i := range places {
		entries[i] = sorted[n]
	}
}
