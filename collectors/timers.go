package collectors

import (
	"errors"

	"cryo/internal/procfs"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// sizeofItimer is that of struct itimerval and struct itimerspec alike: interval and time left.
const sizeofItimer = 32

// readTimers lists the POSIX timers, so that they can be asked for.
func readTimers(t *Task) (err error) {
	if t.posixTimers, err = t.Proc.Timers(); errors.Is(err, unix.ENOENT) { // CONFIG_CHECKPOINT_RESTORE
		err = nil
	}
	return err
}

// askTimers asks for the interval timers and the POSIX timers. The time left is as of the freeze, so it does not run on
// while the task is stopped or in its images.
func askTimers(b *remote.Builder, t *Task) Answer[*Task] {
	intervals := b.Zero(3 * sizeofItimer)
	for which := range 3 {
		b.Call(unix.SYS_GETITIMER, remote.Imm(which), intervals.At(which*sizeofItimer)).Must().Discard()
	}
	settings := b.Zero(max(1, len(t.posixTimers)) * sizeofItimer)
	overruns := make([]remote.Op, len(t.posixTimers))
	for i, p := range t.posixTimers {
		b.Call(unix.SYS_TIMER_GETTIME, remote.Imm(p.ID), settings.At(i*sizeofItimer)).Must().Discard()
		overruns[i] = b.Call(unix.SYS_TIMER_GETOVERRUN, remote.Imm(p.ID)).Must()
	}
	return func(r *remote.Results, t *Task) error {
		e := &timer.TaskTimersEntry{Real: itimer(r, intervals), Virt: itimer(r, intervals.At(sizeofItimer)), Prof: itimer(r, intervals.At(2*sizeofItimer))}
		for i, p := range t.posixTimers {
			overrun, err := r.Value(overruns[i])
			if err != nil {
				return err
			}
			e.Posix = append(e.Posix, posixTimer(t, p, r, settings.At(i*sizeofItimer), overrun))
		}
		t.Core.Tc.Timers = e
		return nil
	}
}

func itimer(r *remote.Results, at remote.Ref) *timer.ItimerEntry {
	word := func(i int) *uint64 { return proto.Uint64(r.Uint64(at.At(8 * i))) }
	return &timer.ItimerEntry{Isec: word(0), Iusec: word(1), Vsec: word(2), Vusec: word(3)}
}

func posixTimer(t *Task, p procfs.Timer, r *remote.Results, at remote.Ref, overrun int64) *timer.PosixTimerEntry {
	const sigevThreadID = 4
	word := func(i int) *uint64 { return proto.Uint64(r.Uint64(at.At(8 * i))) }
	e := &timer.PosixTimerEntry{
		ItId: proto.Uint32(uint32(p.ID)), ClockId: proto.Uint32(uint32(p.Clock)),
		SiSigno: proto.Uint32(uint32(p.Signal)), ItSigevNotify: proto.Uint32(uint32(p.Notify)),
		SivalPtr: proto.Uint64(p.Value), Overrun: proto.Uint32(uint32(overrun)),
		Isec: word(0), Insec: word(1), Vsec: word(2), Vnsec: word(3),
	}
	if p.Thread {
		e.ItSigevNotify = proto.Uint32(uint32(p.Notify | sigevThreadID))
		e.NotifyThreadId = proto.Int32(int32(t.vtid(p.Tid)))
	}
	return e
}
