package restorers

import (
	"encoding/binary"
	"fmt"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

const resetOnFork = 0x40000000 // SCHED_RESET_ON_FORK, in the policy

func checkScheduling(e *StateEmit) error {
	tc := e.Thread.GetThreadCore()
	if nice := tc.GetSchedNice(); nice < -20 || nice > 19 {
		return fmt.Errorf("nice value %d", nice)
	}
	switch tc.GetSchedPolicy() &^ resetOnFork {
	case unix.SCHED_NORMAL, unix.SCHED_BATCH, unix.SCHED_IDLE:
		return nil
	case unix.SCHED_FIFO, unix.SCHED_RR:
		if p := tc.GetSchedPrio(); p < 1 || p > 99 {
			return fmt.Errorf("real-time priority %d", p)
		}
		return nil
	}
	return fmt.Errorf("policy %d is not restored", tc.GetSchedPolicy())
}

// emitScheduling sets policy and priority where they are not the default ones.
func emitScheduling(e *StateEmit) {
	tc := e.Thread.GetThreadCore()
	if policy := tc.GetSchedPolicy(); policy != unix.SCHED_NORMAL {
		param := binary.NativeEndian.AppendUint32(nil, tc.GetSchedPrio())
		e.Call(unix.SYS_SCHED_SETSCHEDULER, remote.Imm(0), remote.Imm(policy), e.Bytes(param)).Must().Discard()
	}
	if tc.GetSchedNice() != e.Base.Nice {
		e.Call(unix.SYS_SETPRIORITY, remote.Imm(unix.PRIO_PROCESS), remote.Imm(0), remote.Imm(tc.GetSchedNice())).Must().Discard()
	}
}
