package collectors

import (
	"bytes"

	"cryo/internal/image"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	sizeofComm = 16
	// unchanged makes personality(2) tell what there is.
	unchanged = 0xffffffff
	// membarrierGetRegistrations is MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3).
	membarrierGetRegistrations = 1 << 9
)

// askPrctls asks for the settings of the whole task that only prctl(2) and membarrier(2) tell, and for the personality,
// whose file in /proc takes longer.
func askPrctls(b *remote.Builder, _ *Task) Answer[*Task] {
	persona := b.Call(unix.SYS_PERSONALITY, remote.Imm(uint32(unchanged))).Must()
	dumpable := b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_DUMPABLE)).Must()
	thp := b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_THP_DISABLE)).Allow(unix.EINVAL)
	subreaper := b.Zero(8)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_CHILD_SUBREAPER), subreaper).Must()
	barriers := b.Call(unix.SYS_MEMBARRIER, remote.Imm(membarrierGetRegistrations), remote.Imm(0), remote.Imm(0))
	return func(r *remote.Results, t *Task) error {
		value, err := r.Value(dumpable)
		if err != nil {
			return err
		}
		t.MM.Dumpable = proto.Int32(int32(value))
		if value, err = r.Value(persona); err != nil {
			return err
		}
		t.Core.Tc.Personality = proto.Uint32(uint32(value))
		disabled, _ := r.Raw(thp)
		t.MM.ThpDisabled = proto.Bool(disabled > 0)
		t.Core.Tc.ChildSubreaper = proto.Bool(r.Uint32(subreaper) != 0)
		if mask, ok := r.Raw(barriers); ok && mask > 0 {
			t.Core.Tc.MembarrierRegistrationMask = proto.Uint32(uint32(mask))
		}
		return nil
	}
}

// askThreadPrctls asks a thread for its name, parent-death signal and timer slack.
func askThreadPrctls(b *remote.Builder) Answer[*Thread] {
	pdeath, comm := b.Zero(8), b.Zero(sizeofComm)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_PDEATHSIG), pdeath).Must()
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_NAME), comm).Must()
	slack := b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_TIMERSLACK)).Must()
	return func(r *remote.Results, th *Thread) error {
		tc := th.Core.ThreadCore
		if sig := r.Uint32(pdeath); sig != 0 {
			tc.PdeathSig = proto.Uint32(sig)
		}
		name, _, _ := bytes.Cut(r.Bytes(comm), []byte{0})
		tc.Comm = proto.String(string(name))
		nanoseconds, err := r.Value(slack)
		image.SetTimerSlack(tc, uint64(nanoseconds))
		return err
	}
}
