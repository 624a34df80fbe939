package remote

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"cryo/arch"
	"cryo/internal/ptrace"
)

const (
	atSysinfoEhdr = 33
	maxVDSO       = 64 << 10
	pageSize      = 4096
)

// FindSyscall returns the address of a system call instruction in a task: in its vdso, or in any code it has mapped. It
// reads the task's memory and needs no stop.
func FindSyscall(pid int) (uint64, error) {
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if le.Uint64(auxv) == atSysinfoEhdr {
			if at := syscallIn(pid, le.Uint64(auxv[8:]), maxVDSO); at != 0 {
				return at, nil
			}
		}
	}
	return findSyscallInMaps(pid)
}

// syscallIn looks for a system call instruction in [start, start+size) of a task, as far as it is readable; 0 if there
// is none.
func syscallIn(pid int, start, size uint64) uint64 {
	page := make([]byte, pageSize)
	for off := uint64(0); off < size; off += pageSize {
		if ptrace.ReadMemory(pid, start+off, page) != nil {
			return 0
		}
		if i := arch.FindSyscall(page); i >= 0 {
			return start + off + uint64(i)
		}
	}
	return 0
}

// findSyscallInMaps looks through all code of a task whose vdso is gone.
func findSyscallInMaps(pid int) (uint64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var start, end uint64
		var prot string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &prot); err != nil || !strings.HasPrefix(prot, "r-x") {
			continue
		}
		if at := syscallIn(pid, start, end-start); at != 0 {
			return at, nil
		}
	}
	return 0, fmt.Errorf("task %d has no system call instruction mapped: nothing can be run in it", pid)
}
