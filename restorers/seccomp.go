package restorers

import (
	"encoding/binary"
	"fmt"
	"slices"

	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"golang.org/x/sys/unix"
)

const (
	sizeofSockFilter = 8
	maxFilterBytes   = 4096 * sizeofSockFilter // BPF_MAXINSNS
	maxFilterChain   = 1 << 12
)

func checkSeccomp(e *StateEmit) error {
	switch e.Thread.GetThreadCore().GetSeccompMode() {
	case criu_core.SeccompMode_disabled, criu_core.SeccompMode_strict:
		return nil
	case criu_core.SeccompMode_filter:
		_, err := filterChain(e)
		return err
	}
	return fmt.Errorf("mode %d is unknown", e.Thread.GetThreadCore().GetSeccompMode())
}

// filterChain lists the indices of a thread's filters in seccomp.img, the one that was installed first ahead.
func filterChain(e *StateEmit) ([]uint32, error) {
	var chain []uint32
	for i := e.Thread.GetThreadCore().GetSeccompFilter(); ; {
		if int64(i) >= int64(len(e.Filters)) {
			return nil, fmt.Errorf("filter %d of the %d in seccomp.img", i, len(e.Filters))
		}
		f := e.Filters[i]
		if n := len(f.GetFilter()); n == 0 || n%sizeofSockFilter != 0 || n > maxFilterBytes {
			return nil, fmt.Errorf("filter %d in seccomp.img has %d bytes", i, n)
		}
		chain = append(chain, i)
		if f.Prev == nil {
			break
		}
		if len(chain) > maxFilterChain || f.GetPrev() == i {
			return nil, fmt.Errorf("the filters before %d in seccomp.img go round in a ring", i)
		}
		i = f.GetPrev()
	}
	slices.Reverse(chain)
	return chain, nil
}

// emitSeccomp installs the thread's filters one upon the other. They are suspended while the thread is traced with
// PTRACE_O_SUSPEND_SECCOMP, so what follows still runs; they hold from the moment of the detach.
func emitSeccomp(e *StateEmit) {
	switch e.Thread.GetThreadCore().GetSeccompMode() {
	case criu_core.SeccompMode_strict:
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_SECCOMP), remote.Imm(unix.SECCOMP_MODE_STRICT), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	case criu_core.SeccompMode_filter:
		chain, err := filterChain(e)
		if err != nil {
			panic(err) // checkSeccomp has seen it
		}
		for _, i := range chain {
			f := e.Filters[i]
			prog := e.Bytes(binary.NativeEndian.AppendUint64(
				binary.NativeEndian.AppendUint64(nil, uint64(len(f.GetFilter())/sizeofSockFilter)), 0))
			e.Store(prog.At(8), e.Bytes(f.GetFilter()))
			e.Call(unix.SYS_SECCOMP, remote.Imm(unix.SECCOMP_SET_MODE_FILTER), remote.Imm(f.GetFlags()), prog).Must().Discard()
		}
	}
}
