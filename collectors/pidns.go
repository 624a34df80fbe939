package collectors

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"cryo/internal/procfs"
)

// PIDNS is the pid namespace of the tree: that of its root. A process has an id in it, which images carry, and another in
// the namespace of the tool, by which /proc and ptrace call it; where both are one namespace the ids are the same. A
// namespace of the tree's own is part of the dump if the root is its init: then all who are in it are in the tree.
//
// Kernel interfaces: NSpid, NSpgid and NSsid in /proc/PID/status (Linux 4.1). Images: none, but all that have ids in them.
type PIDNS struct {
	level int // how many namespaces lie between the tool's and the tree's, with that one: 0 if they are the same

	mu    sync.Mutex
	inner map[int]int // ids in the tree's namespace by those in the tool's; empty if they are the same
}

// Learn takes the ids of a task from its status and, where there are no namespaces (CONFIG_PID_NS), from its stat.
func (n *PIDNS) Learn(t *Task, status *procfs.Status, stat *procfs.Stat) {
	ids := [...][]int{status.NSpid, status.NSpgid, status.NSsid}
	for i, own := range [...]int{t.Pid, stat.PGrp, stat.Session} {
		if len(ids[i]) == 0 {
			ids[i] = []int{own}
		}
	}
	t.VPid, t.PGid, t.Sid = innermost(ids[0]), innermost(ids[1]), innermost(ids[2])
	if t.PidLevel = len(ids[0]) - 1; t.PidLevel == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inner == nil {
		n.inner = map[int]int{}
	}
	// A session or a group outlives its leader, whose id nobody else tells then.
	for _, id := range ids {
		n.inner[id[0]] = innermost(id)
	}
}

// Settle is called when the ids of all tasks are known. It notes what stands in the way of a dump.
func (n *PIDNS) Settle(env *Env, tasks []*Task) {
	root := tasks[0]
	n.level = root.PidLevel
	if n.level > 0 && root.VPid != initPID {
		env.Obstacles.Add(Obstacle{Pid: root.Pid,
			What:   fmt.Sprintf("is process %d of a pid namespace of its own", root.VPid),
			Remedy: "dump that namespace from its init on"})
	}
	for _, t := range tasks {
		switch {
		case t.PidLevel != n.level:
			env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "is in another pid namespace than the root of the tree, which cannot be dumped"})
		case t.Sid == 0 && t != root && !env.Options.ShellJob:
			env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "its session leader is outside of its pid namespace"})
		}
	}
}

// belong refuses a namespace that is to stay outside of the dump. That all tasks are in the same is known by then.
func (n *PIDNS) belong(env *Env, t *Task, inode uint64) error {
	if name := fmt.Sprintf("pid[%d]", inode); t.Parent == nil && n.Own() && env.External(name) {
		env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "its pid namespace cannot stay outside of the dump yet",
			Remedy: "dump the namespace from its init on, without --external " + name})
	}
	return nil
}

// initPID is the first process of a pid namespace, with which all others end.
const initPID = 1

// Own says whether the namespace is another one than the tool's.
func (n *PIDNS) Own() bool { return n.level > 0 }

// Inner translates the id of a process, a thread, a group or a session from the tool's namespace to the tree's. It is 0 if
// there is none in there, or nobody is left who could tell.
func (n *PIDNS) Inner(id int) int {
	if n.level == 0 || id <= 0 {
		return id
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if in, known := n.inner[id]; known {
		return in
	}
	in := 0
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id)); err == nil {
		if s, err := procfs.ParseStatus("status", text); err == nil && len(s.NSpid) == n.level+1 {
			in = innermost(s.NSpid)
		}
	}
	n.inner[id] = in
	return in
}

// Departed is what stands in images for the id of a process or thread that has ended and whose files in /proc are open:
// one that nobody has.
func (n *PIDNS) Departed(id int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inner[id] != 0 {
		return n.inner[id]
	}
	taken := map[int]bool{}
	for _, in := range n.inner {
		taken[in] = true
	}
	in := 1<<15 - 1 // the highest id where nobody has raised the limit: high ones are given out last
	for taken[in] {
		in--
	}
	n.inner[id] = in
	return in
}

// procName is the name of a file of /proc with the ids of the tree's namespace in it. The /proc of tree and tool is the same.
func (n *PIDNS) procName(name string) (string, error) {
	parts := strings.Split(name, "/") // "", proc, PID, task, TID ...
	for _, i := range []int{2, 4} {
		if i == 4 && (len(parts) < 5 || parts[3] != "task") {
			break
		}
		id, err := strconv.Atoi(parts[i])
		if err != nil {
			return "", err
		}
		in := n.Inner(id)
		if in == 0 {
			return "", fmt.Errorf("of process %d, which is not in the pid namespace of the tree", id)
		}
		parts[i] = strconv.Itoa(in)
	}
	return strings.Join(parts, "/"), nil
}

// innermost is the id in a task's own namespace.
func innermost(ids []int) int { return ids[len(ids)-1] }
