package stages

import (
	"fmt"

	"cryo/arch"
	"cryo/collectors"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
)

// Flags of a task that is a thread of the kernel's among those of a program, as its stat file has them.
const (
	pfIOWorker   = 0x10   // works for an io_uring: Linux 5.12
	pfUserWorker = 0x4000 // works for an io_uring or for vhost: Linux 6.4
)

// kernelWorker says whether a stopped thread is one of the kernel's that works for the task. It can be traced and stops
// like any other, but it never returns to a program: it has no instruction to go on at, which is quicker to see than its
// flags are.
func kernelWorker(t *collectors.Task, tid int) bool {
	var regs arch.Regs
	if err := ptrace.GetRegs(tid, &regs); err != nil || regs.PC() != 0 {
		return false
	}
	entry := fmt.Sprintf("task/%d/stat", tid)
	b, err := t.Proc.Read(entry)
	if err != nil {
		return false
	}
	stat, err := procfs.ParseStat(t.Proc.Path(entry), b)
	return err == nil && stat.Flags&(pfIOWorker|pfUserWorker) != 0
}
