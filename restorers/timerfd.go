package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"golang.org/x/sys/unix"
)

// Timerfd restores timers behind descriptors (timerfd_create, Linux 2.6.25; TFD_IOC_SET_TICKS, 3.17). They run on from
// where they were: the time between dump and restore does not count.
type Timerfd struct{}

type timerFile struct{ *timerfd.TimerfdEntry }

// Plan checks the clock and the times.
func (Timerfd) Plan(e *fdinfo.FileEntry, _ *FilePlanner) (Object, error) {
	f := e.GetTfd()
	if f == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no tfd", e.GetId())
	}
	switch f.GetClockid() {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
	default:
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: clockid %d is no clock of a timerfd", e.GetId(), f.GetClockid())
	}
	if f.GetVsec() > maxSeconds || f.GetIsec() > maxSeconds || f.GetVnsec() >= 1e9 || f.GetInsec() >= 1e9 {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: %d.%09d s, every %d.%09d s, is no time of a timerfd", e.GetId(), f.GetVsec(), f.GetVnsec(), f.GetIsec(), f.GetInsec())
	}
	return &timerFile{f}, nil
}

// Needs is nothing.
func (f *timerFile) Needs() []uint32 { return nil }

// tfdIocSetTicks is TFD_IOC_SET_TICKS (linux/timerfd.h).
const tfdIocSetTicks = 0x40085400

func (f *timerFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch lv {
	case Open:
		cloexec := s.Cloexec(f.GetId())
		flags := int(f.GetFlags())&unix.O_NONBLOCK | cloexec
		s.Made(b.Call(unix.SYS_TIMERFD_CREATE, remote.Imm(f.GetClockid()), remote.Imm(flags)), f.GetId(), cloexec)
	case Attach:
		return f.start(b, s.Number(f.GetId()))
	}
	return nil
}

// start sets the timer and the expirations that have not been read yet.
func (f *timerFile) start(b *remote.Builder, fd int) error {
	flags := f.GetSettimeFlags() & (unix.TFD_TIMER_ABSTIME | unix.TFD_TIMER_CANCEL_ON_SET)
	sec, nsec := f.GetVsec(), f.GetVnsec()
	// A periodic timer that has expired is set again by the kernel when that is read, so until then nothing is left of
	// its time. It expires here once more.
	expired := sec == 0 && nsec == 0 && f.GetTicks() != 0 && (f.GetIsec() != 0 || f.GetInsec() != 0)
	switch {
	case expired:
		nsec = 1
	case flags&unix.TFD_TIMER_ABSTIME != 0 && (sec != 0 || nsec != 0): // the image has what was left all the same
		var now unix.Timespec
		if err := unix.ClockGettime(int32(f.GetClockid()), &now); err != nil {
			return fmt.Errorf("clock %d: %w", f.GetClockid(), err)
		}
		sec, nsec = sec+uint64(now.Sec), nsec+uint64(now.Nsec)
		sec, nsec = sec+nsec/1e9, nsec%1e9
	}
	b.Call(unix.SYS_TIMERFD_SETTIME, remote.Imm(fd), remote.Imm(flags), b.Bytes(words(f.GetIsec(), f.GetInsec(), sec, nsec)), remote.Imm(0)).Must().Discard()
	if expired {
		poll := b.InOut(words32([]uint32{uint32(fd), unix.POLLIN}))
		b.Call(unix.SYS_PPOLL, poll, remote.Imm(1), b.Bytes(words(1, 0)), remote.Imm(0), remote.Imm(sizeofSigset)).Discard()
	}
	if f.GetTicks() != 0 {
		b.Call(unix.SYS_IOCTL, remote.Imm(fd), remote.Imm(tfdIocSetTicks), b.Bytes(words(f.GetTicks()))).Must().Discard()
	}
	return nil
}
