package restorers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"cryo/internal/cgroup"
	"cryo/internal/image"
	"cryo/internal/options"

	img "github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Cgroups are the control groups of a set and who is in which: cgroup.img. Groups are made before the first task, tasks go
// in as soon as they exist and before they have memory, and limits are set when all is in place.
//
// A nil *Cgroups is of a set whose tasks stay where the tool is.
type Cgroups struct {
	o      *options.Options
	entry  *img.CgroupEntry
	sets   map[uint32]*cgSet
	own    uint32 // the set that the tool had on dump, which stands for what it has now
	h      cgroup.Hierarchies
	dirs   []*groupDir // parents first
	cgns   bool        // the root has a cgroup namespace of its own
	shared bool        // the root groups are those of the whole machine
	born   bool        // the root is in its group of version 2 already
	undo   GroupUndo
}

// GroupUndo puts how to take back a change of the outside world where it is done if the restore fails; done says that it is no
// longer wanted.
type GroupUndo func(GroupChange) (done func(), err error)

// cgSet is one combination of groups.
type cgSet struct {
	members []cgMember
}

// cgMember is a group of one hierarchy that a thread is in.
type cgMember struct {
	hierarchy string
	path      string
	hidden    string // the group that is the root of the cgroup namespace
	threads   bool   // threads may be elsewhere than their leader
}

// ReadCgroups reads and checks the control groups of a set. Nothing is made yet.
func ReadCgroups(s *Set, o *options.Options) (*Cgroups, error) {
	if o.ManageCgroups == options.CgroupIgnore {
		return nil, nil
	}
	e, err := image.Read(s.Source, image.Cgroup, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &Cgroups{o: o, entry: e, sets: map[uint32]*cgSet{}, own: s.Inventory.GetRootCgSet(), h: cgroup.Hierarchies{Yard: o.CgroupYard}, shared: cgroup.Shared()}
	if len(e.Sets) == 0 {
		return nil, nil
	}
	for i, ctl := range e.Controllers {
		if len(ctl.Cnames) == 0 {
			return nil, image.Errorf(image.Cgroup.File(0), 0, "controllers[%d] has no name", i)
		}
		if err := c.moveRoot(ctl); err != nil {
			return nil, err
		}
	}
	if err := c.readSets(); err != nil {
		return nil, err
	}
	if err := c.checkTasks(s); err != nil {
		return nil, err
	}
	if err := c.readOwn(); err != nil {
		return nil, err
	}
	for _, ctl := range e.Controllers {
		if err := c.listDirs(ctl); err != nil {
			c.Close()
			return nil, err
		}
	}
	if err := c.refuse(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close gives back what was opened.
func (c *Cgroups) Close() {
	if c != nil {
		c.h.Close()
	}
}

// controllerOf finds the entry of a hierarchy.
func (c *Cgroups) controllerOf(hierarchy string) *img.CgControllerEntry {
	for _, ctl := range c.entry.Controllers {
		if isOf(ctl, hierarchy) {
			return ctl
		}
	}
	return nil
}

func isOf(ctl *img.CgControllerEntry, hierarchy string) bool {
	return slices.ContainsFunc(ctl.Cnames, func(name string) bool { return cgroup.Same(name, hierarchy) })
}

func (c *Cgroups) readSets() error {
	for i, e := range c.entry.Sets {
		file := image.Cgroup.File(0)
		if c.sets[e.GetId()] != nil || e.GetId() == 0 {
			return image.Errorf(file, 0, "sets[%d].id %d is there twice, or none", i, e.GetId())
		}
		set := &cgSet{}
		for _, m := range e.Ctls {
			ctl := c.controllerOf(m.GetName())
			if ctl == nil {
				return image.Errorf(file, 0, "sets[%d]: hierarchy %q is in no entry of controllers", i, m.GetName())
			}
			path, err := cgroup.Clean(m.GetPath())
			if err != nil {
				return image.Errorf(file, 0, "sets[%d]: %w", i, err)
			}
			member := cgMember{hierarchy: m.GetName(), path: path, threads: ctl.GetIsThreaded()}
			if n := int(m.GetCgnsPrefix()); n > 0 {
				if n > len(m.GetPath()) {
					return image.Errorf(file, 0, "sets[%d]: cgns_prefix %d is longer than %q", i, n, m.GetPath())
				}
				if member.hidden, err = cgroup.Clean(m.GetPath()[:n]); err != nil {
					return image.Errorf(file, 0, "sets[%d]: cgns_prefix: %w", i, err)
				}
			}
			set.members = append(set.members, member)
		}
		c.sets[e.GetId()] = set
	}
	return nil
}

// checkTasks checks that every thread's set is there, and notes whether the root has a cgroup namespace.
func (c *Cgroups) checkTasks(s *Set) error {
	for _, t := range s.Tasks {
		if t.Dead() {
			continue
		}
		for _, th := range t.Threads {
			if id := th.Core.GetThreadCore().GetCgSet(); id != 0 && id != c.own && c.sets[id] == nil {
				return image.Errorf(image.Core.File(uint64(th.TID)), 0, "cg_set %d is in no entry of %s", id, image.Cgroup.File(0))
			}
		}
	}
	root := s.Tasks[0]
	if set := c.sets[setOf(root)]; set != nil && setOf(root) != c.own {
		c.cgns = slices.ContainsFunc(set.members, func(m cgMember) bool { return m.hidden != "" })
	}
	ns := root.IDs.GetCgroupNsId()
	c.cgns = c.cgns || ns != 0 && s.Inventory.GetRootIds().GetCgroupNsId() != 0 && ns != s.Inventory.GetRootIds().GetCgroupNsId()
	return nil
}

// setOf is the set of a task's leader. Older images have it in the state of the task.
func setOf(t *Task) uint32 {
	if id := t.Core.GetThreadCore().GetCgSet(); id != 0 {
		return id
	}
	return t.Core.GetTc().GetCgSet()
}

// readOwn makes the set the tool had on dump the one it has now.
func (c *Cgroups) readOwn() error {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	members, err := cgroup.ParseMembers(string(text))
	if err != nil {
		return err
	}
	set := &cgSet{}
	for _, m := range members {
		set.members = append(set.members, cgMember{hierarchy: m.Hierarchy, path: strings.Trim(m.Path, "/")})
	}
	c.sets[c.own] = set
	return nil
}

// pathIn is the group of a hierarchy in a set. Who is in a hierarchy that was mounted only now is at its root.
func (s *cgSet) pathIn(hierarchy string) string {
	for _, m := range s.members {
		if cgroup.Same(m.hierarchy, hierarchy) {
			return m.path
		}
	}
	return ""
}

// Namespace says whether the root has to make a cgroup namespace, between EnterHidden and Enter.
func (c *Cgroups) Namespace() bool { return c != nil && c.cgns }

// effective is the set of a node when it is whole. Who has none, as helpers and the dead, is where it was forked.
func (c *Cgroups) effective(n *Node) uint32 {
	for ; n != nil; n = n.Forker {
		if !n.Helper() && !n.Dead() {
			if id := setOf(n.Task); id != 0 {
				return id
			}
		}
	}
	return c.own
}

// EnterHidden moves the root, which is where the tool is, to the root of its cgroup namespace to be.
func (c *Cgroups) EnterHidden(n *Node, pid int) error {
	for _, m := range c.sets[c.effective(n)].members {
		if m.hidden == "" {
			continue
		}
		if err := c.move(m.hierarchy, m.hidden, "cgroup.procs", pid); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// Enter moves a process, with all its threads, from where it was forked to its groups. It is called before the process
// has threads and children.
func (c *Cgroups) Enter(n *Node, pid int) error {
	if c == nil {
		return nil
	}
	from, to := c.sets[c.own], c.sets[c.effective(n)]
	if n.Forker != nil {
		from = c.sets[c.effective(n.Forker)]
	}
	if from == to {
		return nil
	}
	for _, m := range to.members {
		at := from.pathIn(m.hierarchy)
		if n.Forker == nil && c.cgns && m.hidden != "" {
			at = m.hidden
		}
		if n.Forker == nil && c.born && m.hierarchy == "" {
			continue
		}
		if at == m.path {
			continue
		}
		if err := c.move(m.hierarchy, m.path, "cgroup.procs", pid); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// EnterThread moves a thread that is elsewhere than its leader.
func (c *Cgroups) EnterThread(n *Node, th *Thread, tid int) error {
	if c == nil {
		return nil
	}
	id := th.Core.GetThreadCore().GetCgSet()
	if id == 0 || id == c.effective(n) {
		return nil
	}
	leader := c.sets[c.effective(n)]
	for _, m := range c.sets[id].members {
		if leader.pathIn(m.hierarchy) == m.path {
			continue
		}
		list := "tasks"
		if m.hierarchy == "" {
			list = "cgroup.threads"
		}
		if err := c.move(m.hierarchy, m.path, list, tid); err != nil {
			return fmt.Errorf("%s, thread %d: %w", n, th.TID, err)
		}
	}
	return nil
}

// move writes an id to a list of a group.
func (c *Cgroups) move(hierarchy, path, list string, id int) error {
	dir, err := c.open(hierarchy, path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := cgroup.WriteProperty(dir, list, strconv.Itoa(id)); err != nil {
		return fmt.Errorf("enter control group /%s of hierarchy %q: %w", path, hierarchy, err)
	}
	return nil
}

func (c *Cgroups) open(hierarchy, path string) (*os.File, error) {
	root, err := c.h.Root(hierarchy)
	if err != nil {
		return nil, err
	}
	dir, err := cgroup.Open(root, path, unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("control group /%s of hierarchy %q: %w", path, hierarchy, err)
	}
	return dir, nil
}

// BornIn opens the group of version 2 that the root can be cloned into, so that it need not be moved (CLONE_INTO_CGROUP,
// Linux 5.7). It is nil if the root stays where the tool is, or has to take another way.
func (c *Cgroups) BornIn(n *Node) (*os.File, error) {
	if c == nil || c.cgns {
		return nil, nil
	}
	set := c.sets[c.effective(n)]
	if path := set.pathIn(""); path != c.sets[c.own].pathIn("") {
		return c.open("", path)
	}
	return nil, nil
}

// Born says that the root is in the group that BornIn named.
func (c *Cgroups) Born() { c.born = true }

// moveRoot does what --cgroup-root asks for: what was the topmost group of the tree gets another path.
func (c *Cgroups) moveRoot(ctl *img.CgControllerEntry) error {
	to, err := c.newRoot(ctl)
	if err != nil || to == "" {
		return err
	}
	root, err := cgroup.Clean(to)
	if err != nil {
		return fmt.Errorf("--cgroup-root: %w", err)
	}
	for _, d := range ctl.Dirs {
		from := strings.Trim(d.GetDirName(), "/")
		moved, used := root, false
		for _, set := range c.entry.Sets {
			for _, m := range set.Ctls {
				path := strings.Trim(m.GetPath(), "/")
				if !isOf(ctl, m.GetName()) || !under(path, from) {
					continue
				}
				used = true
				hidden := strings.Trim(m.GetPath()[:min(int(m.GetCgnsPrefix()), len(m.GetPath()))], "/")
				if hidden == "" {
					m.Path = proto.String("/" + join(root, tail(path, from)))
					continue
				}
				// What the namespace hides is what is replaced.
				m.Path, m.CgnsPrefix = proto.String("/"+join(root, tail(path, hidden))), proto.Uint32(uint32(len(root)+1))
				moved = join(root, tail(from, hidden))
			}
		}
		if used {
			d.DirName = proto.String(moved)
		}
	}
	return nil
}

// newRoot is what --cgroup-root says of a hierarchy: what is said of one of its controllers, else of all.
func (c *Cgroups) newRoot(ctl *img.CgControllerEntry) (string, error) {
	all, own := "", ""
	for _, r := range c.o.CgroupRoots {
		switch {
		case r.Key == "":
			all = r.Value
		case !isOf(ctl, r.Key):
		case own != "" && own != r.Value:
			return "", fmt.Errorf("--cgroup-root: %s and %s are for one hierarchy, that of %s", own, r.Value, r.Key)
		default:
			own = r.Value
		}
	}
	if own != "" {
		return own, nil
	}
	return all, nil
}

// under says whether path is dir or below it; both without slashes at their ends.
func under(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}

// tail is what path has below dir.
func tail(path, dir string) string {
	if !under(path, dir) {
		return ""
	}
	return strings.Trim(strings.TrimPrefix(path, dir), "/")
}

func join(dir, name string) string { return strings.Trim(dir+"/"+name, "/") }
