package remote

import (
	"fmt"

	"cryo/internal/ptrace"

	"golang.org/x/sys/unix"
)

// A descriptor that a program opens in a task only for the tool to duplicate is lent: the task has it until another program
// takes it back. Should the tool die between the two, Evict closes it. The last bytes of the area say which it is, as far as
// there is one; only programs write them, which run to their end whatever happens to the tool.

const (
	lentSize  = 16
	lentMagic = 0x65_6e_69_67_6e_65_66_64 // then the descriptor in 8 bytes
)

func (a Area) lent() uint64 { return a.End() - lentSize }

// Lend notes a descriptor that the program opens. A session has one at a time.
func (s *Session) Lend(b *Builder, fd Op) {
	b.Store(Imm(s.area.lent()+8), fd)
	b.Store(Imm(s.area.lent()), Imm(uint64(lentMagic)))
}

// TakeBack closes a descriptor that was lent.
func (s *Session) TakeBack(b *Builder, fd int64) {
	b.Call(unix.SYS_CLOSE, Imm(fd)).Must().Discard()
	b.Store(Imm(s.area.lent()), Imm(0))
}

// closeLent closes, by the leader, what was lent when a tool died.
func (s *Session) closeLent() error {
	tid := s.leader.thread.TID
	note := make([]byte, lentSize)
	if err := ptrace.ReadMemory(tid, s.area.lent(), note); err != nil || le.Uint64(note) != lentMagic {
		return nil
	}
	if err := s.openEscape(); err != nil {
		return err
	}
	fd := le.Uint64(note[8:])
	ret, err := s.remoteCall(unix.SYS_CLOSE, fd)
	if err == nil && errnoOf(ret) != 0 {
		err = fmt.Errorf("close descriptor %d, which a tool had opened in task %d: %w", fd, tid, errnoOf(ret))
	}
	return err
}
