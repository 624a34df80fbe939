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

// emitLimits sets the resource limits. A hard limit above the tool's own needs CAP_SYS_RESOURCE: without it the task
// keeps the highest it may have, as nothing it holds depends on more.
func emitLimits(e *StateEmit) {
	for i, l := range e.Task.GetTc().GetRlimits().GetRlimits() {
		pair := binary.NativeEndian.AppendUint64(nil, limitOf(l.GetCur()))
		pair = binary.NativeEndian.AppendUint64(pair, limitOf(l.GetMax()))
		e.Call(unix.SYS_PRLIMIT64, remote.Imm(0), remote.Imm(i), e.Bytes(pair), remote.Imm(0)).Allow(unix.EPERM).Discard()
	}
}
