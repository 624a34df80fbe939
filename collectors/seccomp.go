package collectors

import (
	"encoding/binary"
	"errors"
	"slices"

	"cryo/internal/ptrace"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	seccompFilter = 2

	// filterTSync is SECCOMP_FILTER_FLAG_TSYNC.
	filterTSync = 1
)

// seccompTable is seccomp.img: all filters of all threads, each once. A filter names the one installed before it, so a
// thread needs only the number of its youngest.
type seccompTable struct {
	entry *seccomp.SeccompEntry
	known map[string]uint32 // filter, flags and predecessor: number
}

func newSeccompTable() seccompTable {
	return seccompTable{entry: &seccomp.SeccompEntry{}, known: map[string]uint32{}}
}

func traceSeccomp(tr *Tracees, t *Task) error { return tr.seccomp.capture(t) }

// filter is one filter of a thread.
type filter struct {
	code  []byte
	flags uint32
}

// capture reads the seccomp state of all threads of a task.
//
// The kernel does not tell whether threads share their filters, and a task may later ask for synchronisation, which
// works only if they do. So where all threads have the same filters the leader gets them with TSYNC and the others none
// of their own, as criu does.
func (s *seccompTable) capture(t *Task) error {
	if !slices.ContainsFunc(t.Threads, func(th *Thread) bool { return th.Status.Seccomp != 0 }) {
		return nil
	}
	chains := make([][]filter, len(t.Threads))
	same := true
	for i, th := range t.Threads {
		if th.Status.Seccomp != seccompFilter {
			same = false
			continue
		}
		chain, err := readFilters(th.Tid)
		if err != nil {
			return err
		}
		chains[i] = chain
		same = same && slices.EqualFunc(chain, chains[0], func(a, b filter) bool { return slices.Equal(a.code, b.code) && a.flags == b.flags })
	}
	for i, th := range t.Threads {
		tc := th.Core.ThreadCore
		if th.Status.Seccomp == 0 || same && i > 0 {
			continue
		}
		tc.SeccompMode = criu_core.SeccompMode(th.Status.Seccomp).Enum()
		if th.Status.Seccomp == seccompFilter {
			tc.SeccompFilter = proto.Uint32(s.add(chains[i], same))
		}
	}
	return nil
}

// readFilters reads the filters of a thread, oldest first.
func readFilters(tid int) ([]filter, error) {
	var chain []filter
	for i := 0; ; i++ {
		prog, err := ptrace.SeccompFilter(tid, i)
		if errors.Is(err, unix.ENOENT) {
			slices.Reverse(chain)
			return chain, nil
		}
		if err != nil {
			return nil, err
		}
		var f filter
		for _, ins := range prog {
			f.code = binary.NativeEndian.AppendUint16(f.code, ins.Code)
			f.code = append(f.code, ins.Jt, ins.Jf)
			f.code = binary.NativeEndian.AppendUint32(f.code, ins.K)
		}
		flags, err := ptrace.SeccompFlags(tid, i)
		if err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) { // before Linux 4.14
			return nil, err
		}
		f.flags = uint32(flags)
		chain = append(chain, f)
	}
}

// add puts a chain of filters into the table and returns the number of the youngest.
func (s *seccompTable) add(chain []filter, tsync bool) (id uint32) {
	for i, f := range chain {
		if tsync {
			f.flags |= filterTSync
		}
		e := &seccomp.SeccompFilter{Filter: f.code, Flags: proto.Uint32(f.flags)}
		key := binary.NativeEndian.AppendUint32(slices.Clone(f.code), f.flags)
		if i > 0 {
			e.Prev = proto.Uint32(id)
			key = binary.NativeEndian.AppendUint32(key, id)
		}
		known, ok := s.known[string(key)]
		if !ok {
			known = uint32(len(s.entry.SeccompFilters))
			s.entry.SeccompFilters = append(s.entry.SeccompFilters, e)
			s.known[string(key)] = known
		}
		id = known
	}
	return id
}

// Seccomp is the image of all filters.
func (tr *Tracees) Seccomp() *seccomp.SeccompEntry { return tr.seccomp.entry }
