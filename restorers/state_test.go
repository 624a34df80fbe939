package restorers

import (
	"strings"
	"testing"

	"cryo/internal/procfs"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"google.golang.org/protobuf/proto"
)

func emptyCore() *criu_core.CoreEntry {
	return &criu_core.CoreEntry{
		Tc: &criu_core.TaskCoreEntry{Comm: proto.String("idle")},
		ThreadCore: &criu_core.ThreadCoreEntry{Creds: &creds.CredsEntry{
			CapBnd: []uint32{3, 0}, CapPrm: []uint32{3, 0}, CapEff: []uint32{3, 0},
		}},
	}
}

func emitFor(core *criu_core.CoreEntry) *StateEmit {
	return &StateEmit{
		Builder: remote.NewBuilder("test"), Task: core, Thread: core, MM: &mm.MmEntry{}, PID: 7, TID: 7,
		Base: &Base{Status: &procfs.Status{CapBnd: 3}, LoginUID: noLoginUID},
	}
}

// TestPhases looks at what the programs of each phase say for one change of the image at a time.
func TestPhases(t *testing.T) {
	for _, c := range []struct {
		name   string
		phase  Phase
		change func(*StateEmit)
		want   []string // in this order
		not    string
	}{
		{"nothing special", ThreadLast, func(*StateEmit) {}, []string{"capset"}, "setresuid"},
		{"another user", ThreadLast, func(e *StateEmit) { e.Thread.ThreadCore.Creds.Uid = proto.Uint32(1000) },
			[]string{"prctl", "setresuid", "setfsuid", "prctl", "capset"}, "setgroups"},
		{"groups", ThreadLast, func(e *StateEmit) { e.Thread.ThreadCore.Creds.Groups = []uint32{5, 6} }, []string{"setgroups", "capset"}, "setresuid"},
		{"fewer capabilities", ThreadLast, func(e *StateEmit) { e.Thread.ThreadCore.Creds.CapBnd = []uint32{1} }, []string{"prctl", "capset"}, ""},
		{"filters before credentials", ThreadLast, func(e *StateEmit) {
			e.Thread.ThreadCore.SeccompMode = criu_core.SeccompMode_filter.Enum()
			e.Thread.ThreadCore.SeccompFilter = proto.Uint32(1)
			e.Filters = []*seccomp.SeccompFilter{{Filter: make([]byte, 8)}, {Filter: make([]byte, 16), Prev: proto.Uint32(0)}}
		}, []string{"seccomp", "seccomp", "capset"}, ""},
		{"name", ThreadEarly, func(*StateEmit) {}, []string{"prctl"}, "set_robust_list"},
		{"limits", TaskLate, func(e *StateEmit) {
			e.Task.Tc.Rlimits = &criu_core.TaskRlimitsEntry{Rlimits: []*rlimit.RlimitEntry{{Cur: proto.Uint64(1), Max: proto.Uint64(2)}}}
		}, []string{"prlimit64"}, "setitimer"},
		{"timers", TaskLate, func(e *StateEmit) {
			e.Task.Tc.Timers = &timer.TaskTimersEntry{
				Real: &timer.ItimerEntry{Vsec: proto.Uint64(1)}, Virt: &timer.ItimerEntry{}, Prof: &timer.ItimerEntry{},
				Posix: []*timer.PosixTimerEntry{{ItId: proto.Uint32(2), Vsec: proto.Uint64(1), SiSigno: proto.Uint32(10)}},
			}
		}, []string{"setitimer", "timer_create", "timer_delete", "timer_settime"}, "prlimit64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := emitFor(emptyCore())
			c.change(e)
			if err := CheckState(e); err != nil {
				t.Fatal(err)
			}
			EmitState(c.phase, e)
			text := e.Program().String()
			rest := text
			for _, call := range c.want {
				i := strings.Index(rest, call)
				if i < 0 {
					t.Fatalf("no %s where it is wanted in\n%s", call, text)
				}
				rest = rest[i+len(call):]
			}
			if c.not != "" && strings.Contains(text, c.not) {
				t.Errorf("%s is not wanted in\n%s", c.not, text)
			}
		})
	}
}

func TestStateRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*StateEmit)
		want   string
	}{
		{"no credentials", func(e *StateEmit) { e.Thread.ThreadCore.Creds = nil }, "no credentials"},
		{"lacking capability", func(e *StateEmit) { e.Thread.ThreadCore.Creds.CapPrm = []uint32{7} }, "bounding set of the tool"},
		{"short siginfo", func(e *StateEmit) {
			e.Task.Tc.SignalsS = &siginfo.SignalQueueEntry{Signals: []*siginfo.SiginfoEntry{{Siginfo: []byte{1}}}}
		}, "siginfo of 1 bytes"},
		{"ring of filters", func(e *StateEmit) {
			e.Thread.ThreadCore.SeccompMode = criu_core.SeccompMode_filter.Enum()
			e.Filters = []*seccomp.SeccompFilter{{Filter: make([]byte, 8), Prev: proto.Uint32(1)}, {Filter: make([]byte, 8), Prev: proto.Uint32(0)}}
		}, "ring"},
		{"filter that is not there", func(e *StateEmit) {
			e.Thread.ThreadCore.SeccompMode = criu_core.SeccompMode_filter.Enum()
			e.Thread.ThreadCore.SeccompFilter = proto.Uint32(5)
		}, "filter 5 of the 0"},
		{"two timers of one id", func(e *StateEmit) {
			one := &timer.PosixTimerEntry{ItId: proto.Uint32(2), SiSigno: proto.Uint32(10)}
			e.Task.Tc.Timers = &timer.TaskTimersEntry{Posix: []*timer.PosixTimerEntry{one, one}}
		}, "twice"},
		{"limit above its maximum", func(e *StateEmit) {
			e.Task.Tc.Rlimits = &criu_core.TaskRlimitsEntry{Rlimits: []*rlimit.RlimitEntry{{Cur: proto.Uint64(3), Max: proto.Uint64(2)}}}
		}, "more than its maximum"},
		{"long name", func(e *StateEmit) { e.Thread.ThreadCore.Comm = proto.String("sixteen letters!") }, "15 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := emitFor(emptyCore())
			c.change(e)
			if err := CheckState(e); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
