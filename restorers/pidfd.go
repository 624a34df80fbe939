package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// Pidfd restores descriptors of processes (pidfd_open, Linux 5.3). A process that had been reaped is a helper, which
// ends and is reaped before the tree is let go.
type Pidfd struct{}

type pidFile struct {
	id, flags uint32
	pid       int
}

// reaped is the pid that a descriptor has of a process that is gone for good.
const reaped = -1

// departed are the inode numbers of pidfds of processes that have been reaped: one number, one process.
func departed(s *Set) map[uint32]bool {
	inodes := map[uint32]bool{}
	for _, e := range s.Files {
		if f := e.GetPidfd(); f != nil && f.GetNspid() == reaped {
			inodes[f.GetIno()] = true
		}
	}
	return inodes
}

// Plan finds the process.
func (Pidfd) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := e.GetPidfd()
	if f == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no pidfd", e.GetId())
	}
	pid := int(f.GetNspid())
	if pid == reaped {
		pid = p.Tree.Departed[f.GetIno()]
	}
	if n := p.Tree.ByPID[pid]; n == nil || n.Helper() && f.GetNspid() != reaped {
		return nil, fmt.Errorf("a pidfd of process %d, which is not in the set", f.GetNspid())
	}
	return &pidFile{e.GetId(), f.GetFlags() & (unix.PIDFD_NONBLOCK | unix.PIDFD_THREAD), pid}, nil
}

// Needs is nothing.
func (f *pidFile) Needs() []uint32 { return nil }

// Emit opens the process in the first level: it exists already, and ends no sooner than the last level is over.
func (f *pidFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv == Open {
		s.Made(b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(f.pid), remote.Imm(f.flags)), f.id, unix.O_CLOEXEC)
	}
	return nil
}
