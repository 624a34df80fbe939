package restorers

import (
	"encoding/binary"
	"fmt"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

const numLimits = 16 // RLIM_NLIMITS

func checkLimits(e *StateEmit) error {
	if !e.Leader() {
		return nil
	}
	limits := e.Task.GetTc().GetRlimits().GetRlimits()
	if len(limits) > numLimits {
		return fmt.Errorf("%d limits where there are %d", len(limits), numLimits)
	}
	for i, l := range limits {
		if limitOf(l.GetCur()) > limitOf(l.GetMax()) {
			return fmt.Errorf("limit %d: %d is more than its maximum %d", i, l.GetCur(), l.GetMax())
		}
	}
	return nil
}

// limitOf undoes the image's way of writing that there is no limit.
func limitOf(v uint64) uint64 {
	if v == 0xffffffff || v == ^uint64(0) {
		return unix.RLIM_INFINITY
	}
	return v
}

// emitLimits sets the resource limits that differ from the tool's, which the task has until then. A hard limit above the
// tool's own needs CAP_SYS_RESOURCE: without it the task gets the highest it may have.
func emitLimits(e *StateEmit) {
	for i, l := range e.Task.GetTc().GetRlimits().GetRlimits() {
		var own unix.Rlimit
		if err := unix.Getrlimit(i, &own); err != nil {
			continue // a kernel that has fewer
		}
		cur, hard := limitOf(l.GetCur()), limitOf(l.GetMax())
		if i != unix.RLIMIT_NOFILE && cur == own.Cur && hard == own.Max {
			continue // the number of files may have been raised while they were opened
		}
		set := func(cur, hard uint64) remote.Op {
			pair := binary.NativeEndian.AppendUint64(nil, cur)
			pair = binary.NativeEndian.AppendUint64(pair, hard)
			return e.Call(unix.SYS_PRLIMIT64, remote.Imm(0), remote.Imm(i), e.Bytes(pair), remote.Imm(0)).Allow(unix.EPERM)
		}
		done := set(cur, hard)
		if hard > own.Max {
			end := e.NewLabel()
			e.JumpIf(done, remote.Eq, remote.Imm(0), end)
			set(min(cur, own.Max), own.Max)
			e.Builder.Label(end)
		}
	}
}
