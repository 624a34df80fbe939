package restorers

import (
	"fmt"

	"cryo/internal/image"

	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
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
	case u.connection() && peer.GetState() == unixListen && len(peer.GetName()) > 0:
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
	case u.connection():
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
			if err := u.moveTo(p, string(end.GetName())); err != nil {
				return err
			}
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
