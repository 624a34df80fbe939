package collectors

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"golang.org/x/sys/unix"
)

func TestReadSched(t *testing.T) {
	attr := func(policy uint32, flags uint64, nice int32, prio uint32) []byte {
		b := make([]byte, sizeofSchedAttr)
		binary.NativeEndian.PutUint32(b[4:], policy)
		binary.NativeEndian.PutUint64(b[8:], flags)
		binary.NativeEndian.PutUint32(b[16:], uint32(nice))
		binary.NativeEndian.PutUint32(b[20:], prio)
		return b
	}
	for _, test := range []struct {
		name         string
		attr         []byte
		policy, prio uint32
		nice         int32
		refused      bool
	}{
		{"ordinary", attr(unix.SCHED_NORMAL, 0, 0, 0), 0, 0, 0, false},
		{"nice", attr(unix.SCHED_BATCH, 0, -7, 0), 3, 0, -7, false},
		{"real time", attr(unix.SCHED_FIFO, 0, 0, 20), 1, 20, 0, false},
		{"reset on fork", attr(unix.SCHED_RR, 1, 0, 5), 0x40000002, 5, 0, false},
		{"deadline", attr(6, 0, 0, 0), 0, 0, 0, true},
	} {
		th := &Thread{Tid: 1, Core: &criu_core.CoreEntry{ThreadCore: &criu_core.ThreadCoreEntry{}}}
		err := readSched(test.attr, th)
		if refused := errors.As(err, new(Obstacle)); refused != test.refused {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		tc := th.Core.ThreadCore
		if !test.refused && (tc.GetSchedPolicy() != test.policy || tc.GetSchedPrio() != test.prio || tc.GetSchedNice() != test.nice) {
			t.Errorf("%s: %v", test.name, tc)
		}
	}
}

func TestSigactions(t *testing.T) {
	b := make([]byte, numSignals*sizeofSigaction)
	for i := range len(b) / 8 {
		binary.NativeEndian.PutUint64(b[8*i:], uint64(i))
	}
	list := sigactions(b)
	if len(list) != numSignals-2 {
		t.Fatalf("%d actions", len(list))
	}
	// SIGHUP is the first, SIGKILL is left out, SIGRTMAX is the last.
	for _, at := range []struct{ index, signal int }{{0, 1}, {7, 8}, {8, 10}, {len(list) - 1, 64}} {
		e, first := list[at.index], uint64(4*(at.signal-1))
		if e.GetSigaction() != first || e.GetFlags() != first+1 || e.GetRestorer() != first+2 || e.GetMask() != first+3 {
			t.Errorf("action %d is not that of signal %d: %v", at.index, at.signal, e)
		}
	}
}

func TestDropStops(t *testing.T) {
	queue := &siginfo.SignalQueueEntry{}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGSTOP, unix.SIGUSR1, unix.SIGTTOU, unix.SIGCONT} {
		info := make([]byte, 128)
		binary.NativeEndian.PutUint32(info, uint32(sig))
		queue.Signals = append(queue.Signals, &siginfo.SiginfoEntry{Siginfo: info})
	}
	dropStops(queue)
	var left []unix.Signal
	for _, e := range queue.Signals {
		left = append(left, unix.Signal(binary.NativeEndian.Uint32(e.Siginfo)))
	}
	if !slices.Equal(left, []unix.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGCONT}) {
		t.Errorf("left: %v", left)
	}
}

// TestSeccompTable puts chains of filters in that begin alike: what is common is stored once.
func TestSeccompTable(t *testing.T) {
	table := newSeccompTable()
	a, b, c := filter{code: []byte("a")}, filter{code: []byte("b")}, filter{code: []byte("c"), flags: 2}
	ids := []uint32{
		table.add([]filter{a, b}, false), table.add([]filter{a, c}, false), table.add([]filter{a, b}, false),
		table.add([]filter{b}, false), table.add([]filter{a, b}, true),
	}
	if want := []uint32{1, 2, 1, 3, 5}; !slices.Equal(ids, want) {
		t.Errorf("ids %v, want %v", ids, want)
	}
	if n := len(table.entry.SeccompFilters); n != 6 {
		t.Errorf("%d filters", n)
	}
	if f := table.entry.SeccompFilters[2]; f.GetPrev() != 0 || f.Prev == nil || f.GetFlags() != 2 {
		t.Errorf("the third is %v", f)
	}
	if f := table.entry.SeccompFilters[3]; f.Prev != nil {
		t.Errorf("the oldest of a chain has one before it: %v", f)
	}
}

func TestObstacles(t *testing.T) {
	var o Obstacles
	if o.Err() != nil {
		t.Error("nothing is an error")
	}
	o.Add(Obstacle{Pid: 9, Where: "fd 5", What: "a socket", Remedy: "--tcp-established"})
	o.Add(Obstacle{Pid: 3, What: "is in a net namespace of its own"})
	err := o.Err()
	var refused *ObstacleError
	if !errors.As(err, &refused) || len(refused.List) != 2 || refused.List[0].Pid != 3 {
		t.Fatalf("got %v", err)
	}
	if got := refused.List[1].Error(); got != "task 9, fd 5: a socket (--tcp-established)" {
		t.Errorf("got %q", got)
	}
	if !strings.Contains(err.Error(), "and 1 more") {
		t.Errorf("got %q", err)
	}
}
