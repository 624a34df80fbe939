package restorers

import (
	"math"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// EventFD restores event counters (eventfd2, Linux 2.6.27).
type EventFD struct{}

type eventFD struct {
	id      uint32
	flags   int
	counter uint64
}

// Plan checks the counter.
func (EventFD) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	efd := e.GetEfd()
	if efd == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no efd", e.GetId())
	}
	if efd.GetCounter() == math.MaxUint64 {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: counter is larger than an eventfd counts", e.GetId())
	}
	// In the kernel's flags an eventfd is always O_RDWR; a collector adds EFD_SEMAPHORE where it knows of it.
	return &eventFD{e.GetId(), int(efd.GetFlags()) & (unix.EFD_NONBLOCK | unix.EFD_SEMAPHORE), efd.GetCounter()}, nil
}

func (e *eventFD) Needs() []uint32 { return nil }

func (e *eventFD) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	cloexec := s.Cloexec(e.id)
	start := e.counter
	if start > math.MaxUint32 {
		start = 0 // more than the call takes
	}
	s.Made(b.Call(unix.SYS_EVENTFD2, remote.Imm(start), remote.Imm(e.flags|cloexec)), e.id, cloexec)
	if start != e.counter {
		b.Call(unix.SYS_WRITE, remote.Imm(s.Number(e.id)), b.Bytes(words(e.counter)), remote.Imm(8)).Expect(8)
	}
	return nil
}
