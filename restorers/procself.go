package restorers

import (
	"fmt"
	"strconv"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// emitLoginUID sets the audit system's login id, which only a task itself may write. Once set it needs
// CAP_AUDIT_CONTROL to change: a task then keeps the tool's, as the kernel wants it.
func emitLoginUID(e *StateEmit) {
	tc := e.Task.GetTc()
	if tc.Loginuid == nil || tc.GetLoginuid() == noLoginUID || tc.GetLoginuid() == e.Base.LoginUID {
		return
	}
	emitProcSelf(e, "loginuid", strconv.FormatUint(uint64(tc.GetLoginuid()), 10))
}

func checkOOMScoreAdj(e *StateEmit) error {
	if adj := e.Task.GetTc().GetOomScoreAdj(); adj < -1000 || adj > 1000 {
		return fmt.Errorf("value %d", adj)
	}
	return nil
}

// emitOOMScoreAdj sets the value by which the task is preferred or spared when memory runs out. To go below the lowest
// value a task ever had from root needs CAP_SYS_RESOURCE.
func emitOOMScoreAdj(e *StateEmit) {
	tc := e.Task.GetTc()
	if tc.OomScoreAdj == nil || tc.GetOomScoreAdj() == e.Base.OOMScoreAdj {
		return
	}
	emitProcSelf(e, "oom_score_adj", strconv.Itoa(int(tc.GetOomScoreAdj())))
}

// emitProcSelf writes a file of /proc/self.
func emitProcSelf(e *StateEmit, name, value string) {
	fd := e.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), e.String("/proc/self/"+name), remote.Imm(unix.O_WRONLY|unix.O_CLOEXEC), remote.Imm(0)).Must()
	e.Call(unix.SYS_WRITE, fd, e.Bytes([]byte(value)), remote.Imm(len(value))).Allow(unix.EPERM).Discard()
	e.Call(unix.SYS_CLOSE, fd).Must().Discard()
}
