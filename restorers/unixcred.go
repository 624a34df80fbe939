package restorers

import (
	"sync"

	"cryo/internal/image"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// What SO_PEERCRED tells is taken from the task that makes a pair, listens or connects at that moment: its pid and its
// effective ids. So such calls are made by the task with that pid, where the set has it, and under those ids.

// peerIDs are effective ids to make a call under.
type peerIDs struct{ uid, gid uint32 }

// toolIDs are those of the tool, which all tasks have while they are made.
var toolIDs = sync.OnceValue(func() peerIDs { return peerIDs{uint32(unix.Geteuid()), uint32(unix.Getegid())} })

// viewer is the end of a pair whose view counts where both cannot be had: the one that was accepted, as it is a server
// who asks who its client is.
func (u *unixFile) viewer() *unixFile {
	peer := u.set.planned[u.GetPeer()]
	if peer == nil || peer.role != unixMade || u.set.listeners[string(u.GetName())] || !u.set.listeners[string(peer.GetName())] {
		return u
	}
	return peer
}

// idsSeenBy are the ids that u is to see as those of its other end. Where the set does not tell, as criu's, they are
// the owner's.
func (u *unixFile) idsSeenBy(owner *Table) peerIDs {
	if c := image.GetPeerCreds(u.UnixSkEntry); c != nil {
		return peerIDs{c.UID, c.GID}
	}
	return idsOf(owner)
}

// idsOf are the effective ids of the first task with a table.
func idsOf(t *Table) peerIDs {
	c := t.Node.Core.GetThreadCore().GetCreds()
	if c == nil {
		return toolIDs()
	}
	return peerIDs{c.GetEuid(), c.GetEgid()}
}

// seenPID lets the task with the pid that is to be seen make the socket.
func (u *unixFile) seenPID(p *FilePlanner) {
	c := image.GetPeerCreds(u.viewer().UnixSkEntry)
	if c == nil {
		return
	}
	if t := u.set.tables(p)[int(c.PID)]; t != nil {
		p.File(u.GetId()).Owner = t
	}
}

// asIDs makes calls under other effective ids. The capabilities stay: NO_SETUID_FIXUP keeps them over the change.
func asIDs(b *remote.Builder, ids peerIDs, calls func()) {
	const unchanged = ^uint32(0)
	own := toolIDs()
	if ids == own || ids.uid == unchanged || ids.gid == unchanged {
		calls()
		return
	}
	set := func(ids peerIDs) {
		b.Call(unix.SYS_SETRESGID, remote.Imm(-1), remote.Imm(ids.gid), remote.Imm(-1)).Must().Discard()
		b.Call(unix.SYS_SETRESUID, remote.Imm(-1), remote.Imm(ids.uid), remote.Imm(-1)).Must().Discard()
	}
	bits := b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_SECUREBITS), remote.Imm(0), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must()
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_SECUREBITS), remote.Imm(noSetuidFixup), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	set(ids)
	calls()
	set(own)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_SECUREBITS), bits, remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
}

// tables are the descriptor tables by the pid of the task that makes their files.
func (s *unixSet) tables(p *FilePlanner) map[int]*Table {
	if s.byPID == nil {
		s.byPID = map[int]*Table{}
		for _, t := range p.Tables() {
			s.byPID[t.Node.ID] = t
		}
	}
	return s.byPID
}
