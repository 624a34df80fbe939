package restorers

import (
	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	"golang.org/x/sys/unix"
)

// Signalfd restores descriptors that read signals (signalfd4, Linux 2.6.27).
type Signalfd struct{}

type signalFile struct{ *signalfd.SignalfdEntry }

// Plan takes every set of signals: the kernel leaves out what cannot be waited for.
func (Signalfd) Plan(e *fdinfo.FileEntry, _ *FilePlanner) (Object, error) {
	if e.GetSgfd() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no sgfd", e.GetId())
	}
	return &signalFile{e.GetSgfd()}, nil
}

// Needs is nothing.
func (f *signalFile) Needs() []uint32 { return nil }

func (f *signalFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv == Open {
		cloexec := s.Cloexec(f.GetId())
		flags := int(f.GetFlags())&unix.O_NONBLOCK | cloexec
		s.Made(b.Call(unix.SYS_SIGNALFD4, remote.Imm(-1), b.Bytes(words(f.GetSigmask())), remote.Imm(sizeofSigset), remote.Imm(flags)), f.GetId(), cloexec)
	}
	return nil
}
