package restorers

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// proc is a process of a small model of what the kernel does with parents, sessions and process groups.
type proc struct {
	pid, parent, sid, pgid int
}

// kernel is that model. Process 1 is outside of the tree, 100 its root, which adopts orphans.
type kernel struct {
	procs map[int]*proc
	next  int
}

const rootPID = 100

func (k *kernel) fork(pid, parentOf, child int) error {
	if k.procs[child] != nil {
		return fmt.Errorf("pid %d is taken", child)
	}
	for _, p := range k.procs {
		if p.sid == child || p.pgid == child {
			return fmt.Errorf("pid %d is a session or group still", child)
		}
	}
	p := k.procs[pid]
	k.procs[child] = &proc{child, parentOf, p.sid, p.pgid}
	return nil
}

func (k *kernel) setsid(pid int) error {
	for _, p := range k.procs {
		if p.pgid == pid {
			return fmt.Errorf("setsid of %d, which leads a group", pid)
		}
	}
	k.procs[pid].sid, k.procs[pid].pgid = pid, pid
	return nil
}

func (k *kernel) setpgid(pid, group int) error {
	p := k.procs[pid]
	if p.sid == pid {
		return fmt.Errorf("setpgid of %d, which leads a session", pid)
	}
	if group != pid && !slices.ContainsFunc(k.list(), func(q *proc) bool { return q.pgid == group && q.sid == p.sid }) {
		return fmt.Errorf("setpgid of %d: no group %d in session %d", pid, group, p.sid)
	}
	p.pgid = group
	return nil
}

func (k *kernel) exit(pid int) {
	delete(k.procs, pid)
	for _, p := range k.procs {
		if p.parent == pid {
			p.parent = rootPID
		}
	}
}

func (k *kernel) list() []*proc {
	var all []*proc
	for _, p := range k.procs {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *proc) int { return a.pid - b.pid })
	return all
}

// history makes a tree by random calls of its processes.
func history(rnd *rand.Rand, steps int) *kernel {
	k := &kernel{procs: map[int]*proc{rootPID: {rootPID, 0, rootPID, rootPID}}, next: rootPID + 1}
	for range steps {
		all := k.list()
		p := all[rnd.IntN(len(all))]
		switch rnd.IntN(8) {
		case 0, 1, 2:
			if len(all) < 12 && k.fork(p.pid, p.pid, k.next) == nil {
				k.next++
			}
		case 3, 4:
			k.setsid(p.pid)
		case 5:
			k.setpgid(p.pid, p.pid)
		case 6:
			k.setpgid(p.pid, all[rnd.IntN(len(all))].pgid)
		case 7:
			if p.pid != rootPID {
				k.exit(p.pid)
			}
		}
	}
	return k
}

// set is the tree as images tell it, parents first.
func (k *kernel) set() *Set {
	s := &Set{ByPID: map[int]*Task{}}
	var add func(p *proc)
	add = func(p *proc) {
		t := &Task{PID: p.pid, PPID: p.parent, PGID: p.pgid, SID: p.sid, Threads: []*Thread{{TID: p.pid}}, Parent: s.ByPID[p.parent]}
		s.Tasks = append(s.Tasks, t)
		s.ByPID[p.pid] = t
		for _, c := range k.list() {
			if c.parent == p.pid {
				add(c)
			}
		}
	}
	add(k.procs[rootPID])
	return s
}

// carryOut does what the stages do with a planned tree.
func carryOut(t *Tree) (*kernel, error) {
	k := &kernel{procs: map[int]*proc{1: {1, 0, 1, 1}}}
	if err := k.fork(1, 0, rootPID); err != nil {
		return k, err
	}
	fork := func(n *Node, children []*Node) error {
		for _, c := range children {
			parent := n.ID
			if c.Adopted() {
				parent = k.procs[n.ID].parent
			}
			if err := k.fork(n.ID, parent, c.ID); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range t.Nodes {
		if err := fork(n, n.ForksBefore()); err != nil {
			return k, err
		}
		if n.LeadsSession() {
			if err := k.setsid(n.ID); err != nil {
				return k, err
			}
		}
		if err := fork(n, n.ForksAfter()); err != nil {
			return k, err
		}
	}
	turns, err := t.GroupMoves()
	if err != nil {
		return k, err
	}
	for _, turn := range turns {
		for _, m := range turn {
			if err := k.setpgid(m.ID, m.Group); err != nil {
				return k, err
			}
		}
	}
	for _, n := range t.Nodes {
		if n.Helper() {
			k.exit(n.ID)
		}
	}
	delete(k.procs, 1)
	return k, nil
}

// sparePID is the first free pid from 900 on.
func sparePID(taken func(int) bool) (int, error) {
	pid := 900
	for taken(pid) {
		pid++
	}
	return pid, nil
}

// TestPlanTree plans trees with random histories and carries the plans out.
func TestPlanTree(t *testing.T) {
	refused := 0
	const histories = 3000
	for seed := range uint64(histories) {
		want := history(rand.New(rand.NewPCG(seed, 1)), 40)
		tree, err := PlanTree(want.set(), false, sparePID)
		if err != nil {
			refused++
			t.Logf("history %d: %v", seed, err)
			continue
		}
		got, err := carryOut(tree)
		if err != nil {
			t.Errorf("history %d: %v", seed, err)
			continue
		}
		for _, w := range want.list() {
			if g := got.procs[w.pid]; g == nil || *g != *w {
				t.Errorf("history %d: process %+v became %+v", seed, w, g)
			}
		}
	}
	t.Logf("%d of %d refused", refused, histories)
}
