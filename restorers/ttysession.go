package restorers

import (
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
)

// claim is a terminal that a session has as its controlling one.
type claim struct {
	fd    int    // descriptor of the tool on it; the master of a pair stands for its slave
	group uint32 // in the foreground
}

// leads says whether the leader of a session is in the set.
func (s *ttySet) leads(session uint32) bool {
	t := s.set.ByPID[int(session)]
	return session != 0 && t != nil && t.SID == t.PID
}

// claim notes whose controlling terminal it is.
func (s *ttySet) claim(e *tty.TtyInfoEntry, fd int) {
	if s.leads(e.GetSid()) {
		s.claims[int(e.GetSid())] = claim{fd: fd, group: e.GetPgrp()}
	}
}

// EmitClaim makes the leader of a session take its controlling terminal. It comes after [Ready], as soon as the leader
// has the session and before it forks, for others only inherit the terminal. Nothing is added for who leads none.
func (p *FilePlan) EmitClaim(n *Node, b *remote.Builder) {
	p.onTerminal(n, b, func(fd remote.Op, _ claim) {
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSCTTY), remote.Imm(0)).Must().Discard()
	})
}

// EmitForeground makes the leader put a group in the foreground of its terminal. It comes after [Open], when the tool
// still has the terminals, and all groups are there.
func (p *FilePlan) EmitForeground(n *Node, b *remote.Builder) {
	p.onTerminal(n, b, func(fd remote.Op, c claim) {
		if c.group != 0 { // one that has no more members cannot be in the foreground again
			b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSPGRP), b.Bytes(words32([]uint32{c.group}))).Allow(unix.ESRCH).Discard()
		}
	})
}

// onTerminal adds what a leader does with its terminal, for which it borrows a descriptor of the tool.
func (p *FilePlan) onTerminal(n *Node, b *remote.Builder, do func(fd remote.Op, c claim)) {
	if p.ttys == nil {
		return
	}
	c, ok := p.ttys.claims[n.ID]
	if !ok {
		return
	}
	tool := b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(p.lender), remote.Imm(0)).Must()
	fd := b.Call(unix.SYS_PIDFD_GETFD, tool, remote.Imm(c.fd), remote.Imm(0)).Must()
	do(fd, c)
	b.Call(unix.SYS_CLOSE, fd).Must().Discard()
	b.Call(unix.SYS_CLOSE, tool).Must().Discard()
}
