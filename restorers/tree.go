package restorers

import (
	"fmt"
	"maps"
	"slices"
)

// Node is a process to create: a task of the set, or a helper that stands in for something that is gone (the leader of a
// session or of a process group, the owner of a pid whose /proc files are open) and exits when the tree is whole.
type Node struct {
	*Task     // nil for a helper
	ID    int // its pid in the tree's pid namespace, as images have it
	Host  int // its pid as the tool and /proc call it, 0 until it has been made

	Parent *Node // whose child it is when all is done; nil for the root
	Forker *Node // who clones it; differs from Parent where the session it is born in demands it
	Level  int   // how many forks lie between the tool and it

	Born    int // session it is forked in; 0 is the tool's own
	Session int // session it ends in; 0 is the tool's own
	Group   int // process group it ends in; 0 is the tool's own

	// Orphan says that the node is to lose its forker, a helper that ends, so that it falls to Parent. Parent has to be
	// a subreaper at that moment, and no task between the two.
	Orphan bool

	forks []*Node
}

// Helper says whether the node stands for no task of the set.
func (n *Node) Helper() bool { return n.Task == nil }

// LeadsSession says whether the node has to call setsid.
func (n *Node) LeadsSession() bool { return n.Session == n.ID }

// Adopted says whether the node is cloned with CLONE_PARENT, so that it becomes its forker's brother.
func (n *Node) Adopted() bool { return n.Forker != nil && n.Forker != n.Parent && !n.Orphan }

// ForksBefore lists whom the node forks before it calls setsid, ForksAfter the others.
func (n *Node) ForksBefore() []*Node { return n.forksIf(true) }

// ForksAfter lists whom the node forks at last: after setsid where it calls it.
func (n *Node) ForksAfter() []*Node { return n.forksIf(false) }

func (n *Node) forksIf(before bool) []*Node {
	var some []*Node
	for _, c := range n.forks {
		if (n.LeadsSession() && c.Born != n.Session) == before {
			some = append(some, c)
		}
	}
	return some
}

func (n *Node) String() string {
	if n.Helper() {
		return fmt.Sprintf("helper %d", n.ID)
	}
	return n.Task.String()
}

// Tree is all processes to create, forkers before whom they fork.
type Tree struct {
	Nodes []*Node
	ByPID map[int]*Node
	Root  *Node
	// Departed are the helpers that stand for processes which had been reaped, but of which pidfds are open, by the inode
	// numbers of those.
	Departed map[uint32]int

	tids map[int]bool // threads that are no leaders
}

// PlanTree decides who forks whom. With shellJob the session and the group of the root, which are a shell's, become the
// tool's own. spare finds a pid for a helper that needs a certain one no more than not to be in the way.
func PlanTree(s *Set, shellJob bool, spare func(taken func(int) bool) (int, error)) (*Tree, error) {
	p := &treePlan{set: s, t: &Tree{ByPID: map[int]*Node{}, tids: map[int]bool{}}, spare: spare}
	root := s.Tasks[0]
	outside := func(id int) bool { return id == 0 }
	if shellJob {
		outside = func(id int) bool { return id == 0 || id == root.SID || id == root.PGID && id != root.PID }
	}
	for _, t := range s.Tasks {
		n := &Node{Task: t, ID: t.PID, Session: t.SID, Group: t.PGID}
		if outside(t.SID) && (!shellJob || t.SID != t.PID) {
			n.Session = 0
		}
		if outside(t.PGID) {
			n.Group = 0
		}
		if t.Parent != nil {
			n.Parent = p.t.ByPID[t.Parent.PID]
		}
		p.add(n)
		for _, th := range t.Threads[1:] {
			p.t.tids[th.TID] = true
		}
	}
	p.t.Root = p.t.Nodes[0]
	for _, pid := range DeadPIDs(s) {
		if _, err := p.helper(pid, p.t.Root, p.t.Root.Session, 0, "a file in /proc"); err != nil {
			return nil, err
		}
	}
	if err := p.departed(); err != nil {
		return nil, err
	}
	if r := p.t.Root; r.Session != 0 && !r.LeadsSession() {
		return nil, fmt.Errorf("the root, %s, belongs to session %d, which is not in the set: if it was started from a shell, restore it with --shell-job", root, root.SID)
	}
	return p.run()
}

// departed adds helpers for processes that are known by nothing but pidfds any more.
func (p *treePlan) departed() error {
	p.t.Departed = map[uint32]int{}
	for _, ino := range slices.Sorted(maps.Keys(departed(p.set))) {
		pid, err := p.spare(p.t.Taken)
		if err == nil {
			_, err = p.helper(pid, p.t.Root, p.t.Root.Session, 0, "a pidfd")
		}
		if err != nil {
			return err
		}
		p.t.Departed[ino] = pid
	}
	return nil
}

// Host is what the tool calls a process of the tree that has been made, 0 for others.
func (t *Tree) Host(id int) int {
	if n := t.ByPID[id]; n != nil {
		return n.Host
	}
	return 0
}

// Taken says whether a task or thread of the set, or a helper, has an id.
func (t *Tree) Taken(id int) bool { return t.ByPID[id] != nil || t.tids[id] }

type treePlan struct {
	set   *Set
	t     *Tree
	spare func(taken func(int) bool) (int, error)
}

func (p *treePlan) add(n *Node) *Node {
	p.t.Nodes = append(p.t.Nodes, n)
	p.t.ByPID[n.ID] = n
	return n
}

func (p *treePlan) helper(pid int, parent *Node, session, group int, why string) (*Node, error) {
	if p.t.tids[pid] || pid < 1 || pid > maxPID {
		return nil, fmt.Errorf("%s needs a process with id %d to stand in for one that is gone, which cannot be: it is no pid, or a thread's in the set", why, pid)
	}
	return p.add(&Node{ID: pid, Parent: parent, Session: session, Group: group}), nil
}

func (p *treePlan) run() (*Tree, error) {
	if err := p.leaders(); err != nil {
		return nil, err
	}
	for _, n := range p.t.Nodes {
		n.Born = -1
	}
	// Children tell in which session their parent was when it forked them, so they are looked at first. Helpers have
	// no such children and come last in Nodes.
	for _, n := range slices.Backward(p.t.Nodes) {
		if err := p.born(n); err != nil {
			return nil, err
		}
	}
	for _, n := range slices.Clone(p.t.Nodes[1:]) {
		if err := p.forker(n); err != nil {
			return nil, err
		}
	}
	return p.t, p.order()
}

// leaders adds helpers for sessions and groups whose leader is gone.
func (p *treePlan) leaders() error {
	for _, n := range slices.Clone(p.t.Nodes) {
		if n.Session != 0 && p.t.ByPID[n.Session] == nil {
			// A task whose session leader died and which is still in the tree was reparented, so the leader's
			// parent may be the one it has now.
			if _, err := p.helper(n.Session, n.Parent, n.Session, n.Session, fmt.Sprintf("the session of %s", n)); err != nil {
				return err
			}
		}
		if l := p.t.ByPID[n.Session]; n.Session != 0 && !l.LeadsSession() {
			return fmt.Errorf("%s belongs to session %d, but task %d has session %d", n, n.Session, l.ID, l.Session)
		}
	}
	for _, n := range slices.Clone(p.t.Nodes) {
		if n.Group == 0 {
			continue
		}
		if p.t.ByPID[n.Group] == nil {
			if _, err := p.helper(n.Group, n, n.Session, n.Group, fmt.Sprintf("the process group of %s", n)); err != nil {
				return err
			}
		}
		if l := p.t.ByPID[n.Group]; l.Session != n.Session {
			return fmt.Errorf("%s belongs to process group %d of session %d, but task %d has session %d", n, n.Group, n.Session, l.ID, l.Session)
		}
		if n.LeadsSession() && n.Group != n.ID {
			return fmt.Errorf("%s leads session %d and belongs to process group %d: no such thing can be", n, n.Session, n.Group)
		}
	}
	return nil
}

// born decides in which session n is forked. Who calls no setsid is born where it stays; who does is born wherever its
// parent is, unless a child of it was born before the call.
func (p *treePlan) born(n *Node) error {
	if n.Parent == nil {
		n.Born = 0
		return nil
	}
	if !n.LeadsSession() {
		n.Born = n.Session
		return nil
	}
	for _, c := range p.t.Nodes {
		if c.Parent != n || c.LeadsSession() && c.Born < 0 || c.Born == n.Session {
			continue
		}
		if p.forksFromHelper(n, c) {
			continue
		}
		if n.Born >= 0 && n.Born != c.Born {
			return fmt.Errorf("children of %s were born in the sessions %d and %d: the order of forks and setsid calls behind that is not known", n, n.Born, c.Born)
		}
		n.Born = c.Born
	}
	return nil
}

// forksFromHelper says whether c, a child of n, is to be cloned by the leader of its session, a brother of it.
func (p *treePlan) forksFromHelper(n, c *Node) bool {
	l := p.t.ByPID[c.Born]
	return c.Born > 0 && l != nil && l != c && l.Parent == n
}

func (p *treePlan) forker(n *Node) error {
	if n.Born < 0 { // a leader that may be born anywhere
		n.Forker, n.Born = n.Parent, n.Parent.Session
		return nil
	}
	switch l := p.t.ByPID[n.Born]; {
	case n.Born == n.Parent.Session || n.Born == n.Parent.Born:
		n.Forker = n.Parent
	case n.Born != 0 && l != nil && l.Parent == n.Parent:
		n.Forker = l
	case n.Born != 0 && l != nil && l.below(n.Parent):
		return p.orphan(n, l)
	default:
		return fmt.Errorf("%s has session %d, which its parent %s never had: the order of forks and setsid calls behind that is not known", n, n.Born, n.Parent)
	}
	return nil
}

// below says whether n is a descendant of other.
func (n *Node) below(other *Node) bool {
	for n != nil && n != other {
		n = n.Parent
	}
	return n != nil
}

// orphan makes n the child of a helper in the session of leader: when the helper ends, n falls to its parent, as it did
// when whoever forked it died.
func (p *treePlan) orphan(n, leader *Node) error {
	pid, err := p.spare(p.t.Taken)
	if err != nil {
		return err
	}
	h, err := p.helper(pid, leader, leader.Session, 0, fmt.Sprintf("the lost parent of %s", n))
	if err != nil {
		return err
	}
	h.Born, h.Forker = leader.Session, leader
	n.Forker, n.Orphan = h, true
	return nil
}

// GroupMove is one setpgid(0, Group) of a node.
type GroupMove struct {
	*Node
	Group int
}

// GroupMoves lists the calls of setpgid by which all nodes come into their process groups, in turns: the calls of one turn
// may be made at the same time. First every group is founded by its leader, then joined; leaders that have gone to another
// group since go last, when somebody else keeps their own alive.
func (t *Tree) GroupMoves() ([][]GroupMove, error) {
	wanted := map[int]int{} // how many nodes are to be in a group
	for _, n := range t.Nodes {
		wanted[n.Group]++
	}
	var found, join []GroupMove
	var leave []*Node
	born := map[*Node]int{} // the group each node is forked in
	for _, n := range t.Nodes {
		if f := n.Forker; f != nil {
			if born[n] = born[f]; f.LeadsSession() && n.Born == f.Session {
				born[n] = f.ID
			}
		}
		founds := wanted[n.ID] > 0 && !n.LeadsSession()
		if founds {
			found = append(found, GroupMove{n, n.ID})
		}
		switch {
		case n.Group == 0 || n.Group == n.ID || n.Group == born[n] && !founds:
		case founds:
			leave = append(leave, n)
		default:
			join = append(join, GroupMove{n, n.Group})
		}
	}
	turns := [][]GroupMove{found, join}
	here := map[int]int{} // how many nodes that stay are in a group
	for _, n := range t.Nodes {
		if !slices.Contains(leave, n) {
			here[n.Group]++
		}
	}
	for len(leave) > 0 {
		i := slices.IndexFunc(leave, func(n *Node) bool { return here[n.ID] > 0 })
		if i < 0 {
			return nil, fmt.Errorf("%s left process group %d to others in a way that is not known", leave[0], leave[0].ID)
		}
		n := leave[i]
		leave = slices.Delete(leave, i, i+1)
		here[n.Group]++
		turns = append(turns, []GroupMove{{n, n.Group}})
	}
	return turns, nil
}

// order sorts the nodes so that forkers come first, and sets the levels.
func (p *treePlan) order() error {
	for _, n := range p.t.Nodes[1:] {
		n.Forker.forks = append(n.Forker.forks, n)
	}
	sorted := []*Node{p.t.Root}
	for i := 0; i < len(sorted); i++ {
		for _, c := range sorted[i].forks {
			c.Level = sorted[i].Level + 1
			sorted = append(sorted, c)
		}
	}
	if len(sorted) != len(p.t.Nodes) {
		return fmt.Errorf("sessions and process groups of the set lead in a circle")
	}
	p.t.Nodes = sorted
	return nil
}
