package collectors

import (
	"cryo/internal/pagecopy"
	"cryo/internal/procfs"
)

// MarkForked finds out which tasks of a tree may share pages with others, one of which may be the parent of the root. It tells
// by where the kernel says that their stacks began: that is chosen at random for each program and stays the same in its forks.
func MarkForked(tasks []*Task) {
	seen := map[uint64]int{}
	for _, t := range tasks {
		if t.Live() {
			seen[t.Stat.StartStack]++
		}
		if t.Parent == nil {
			seen[startStack(t.Stat.PPid)]++
		}
	}
	for _, t := range tasks {
		t.Forked = t.Live() && seen[t.Stat.StartStack] > 1
	}
}

// startStack is where the stack of a process began, 0 for one that is not there or that must not be asked.
func startStack(pid int) uint64 {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return 0
	}
	defer dir.Close()
	stat, err := dir.Stat()
	if err != nil {
		return 0
	}
	return stat.StartStack
}

// Pages is the memory of the task, to be read without taking anything from those it shares it with.
func (t *Task) Pages() *pagecopy.Task {
	p := pagecopy.NewTask(t.Pid)
	p.Shared = t.Forked
	return p
}
