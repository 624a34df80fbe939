package collectors

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"cryo/internal/cgroup"
	"cryo/internal/options"

	img "github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Cgroups numbers the sets of control groups that threads are in, and stores what the groups are: cgroup.img. The tool's
// own set is number 1; tasks that share it are left where a restore finds itself, so it is not stored.
//
// It is for one goroutine: all threads first, in task order, then the groups.
type Cgroups struct {
	o      *options.Options
	props  cgroup.Properties
	ids    map[string]uint32 // of a set, by its members and prefixes as text
	texts  map[cgroupFile]uint32
	sets   []*img.CgSetEntry // sets[0] is the tool's own
	here   []cgroup.Member   // of the tool, every hierarchy in the kernel's order
	inside *namespaceView    // that of the tree, if it has one of its own
	root   *Task

	frozen *FreezeGroup
}

// cgroupFile is what a thread's cgroup file says, and whether the thread is in a cgroup namespace of its own.
type cgroupFile struct {
	text   string
	inside bool
}

// namespaceView is a cgroup namespace of the tree: for each hierarchy, how many bytes of a path the namespace hides.
type namespaceView struct {
	ino    uint64
	prefix map[string]int
}

// FreezeGroup tells of the group that the tool itself freezes to stop the tree.
type FreezeGroup struct {
	Dir   unix.Stat_t // its directory
	Found bool        // it was frozen before
}

// ownSet is the number of the tool's own set.
const ownSet = 1

// NewCgroups reads the tool's own set.
func NewCgroups(o *options.Options) (*Cgroups, error) {
	c := &Cgroups{o: o, ids: map[string]uint32{}, texts: map[cgroupFile]uint32{}}
	var err error
	if c.props, err = properties(o); err != nil {
		return nil, err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		m, err := cgroup.ParseMembers(line)
		if err != nil {
			return nil, err
		}
		c.here = append(c.here, m...)
	}
	_, err = c.number(cgroupFile{text: string(text)})
	return c, err
}

// properties is what --cgroup-props and --cgroup-props-file make of the defaults.
func properties(o *options.Options) (cgroup.Properties, error) {
	p := cgroup.DefaultProperties()
	if err := p.Add(o.CgroupProps); err != nil {
		return nil, fmt.Errorf("--cgroup-props: %w", err)
	}
	if o.CgroupPropsFile == "" {
		return p, nil
	}
	text, err := os.ReadFile(o.CgroupPropsFile)
	if err == nil {
		err = p.Add(string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("--cgroup-props-file: %w", err)
	}
	return p, nil
}

// Own is the number of the tool's own set.
func (c *Cgroups) Own() uint32 { return ownSet }

// SetFreezer names the group that the tool freezes: what it is found with is stored, not what the tool has made of it.
func (c *Cgroups) SetFreezer(g *FreezeGroup) { c.frozen = g }

// Number notes in the image of each thread of a live task the number of its set. Call it in task order.
func (c *Cgroups) Number(env *Env, t *Task) error {
	inside, err := c.namespace(env, t)
	if err != nil {
		return err
	}
	for _, th := range t.Threads {
		id, err := c.number(cgroupFile{th.cgroups.Value(), inside})
		if err != nil {
			return fmt.Errorf("thread %d: %w", th.Tid, err)
		}
		th.Core.ThreadCore.CgSet = proto.Uint32(id)
	}
	return nil
}

// namespace says whether a task is in a cgroup namespace of its own. All tasks of a tree have to be in the same.
func (c *Cgroups) namespace(env *Env, t *Task) (inside bool, err error) {
	own, ino := env.Namespaces.own["cgroup"], t.namespaces.inode("cgroup")
	if c.root == nil {
		c.root = t
		if ino != own {
			if c.inside, err = viewNamespace(t); err != nil {
				return false, err
			}
			c.inside.ino = ino
		}
	}
	want := own
	if c.inside != nil {
		want = c.inside.ino
	}
	if ino != want {
		env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "is in another cgroup namespace than the root of the tree, which images have no place for"})
	}
	return c.inside != nil, nil
}

// viewNamespace finds out what a task's cgroup namespace hides, by looking at the task from within it.
func viewNamespace(t *Task) (*namespaceView, error) {
	ns, err := t.Proc.Open("ns/cgroup", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns)
	out, err := membersOf(t)
	if err != nil {
		return nil, err
	}
	var in []cgroup.Member
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace stays in it
		err := unix.Setns(ns, unix.CLONE_NEWCGROUP)
		if err == nil {
			in, err = membersOf(t)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("look into the cgroup namespace of task %d: %w", t.Pid, err)
	}
	view := &namespaceView{prefix: map[string]int{}}
	for i, m := range out {
		if i >= len(in) || in[i].Hierarchy != m.Hierarchy || !strings.HasSuffix(m.Path, strings.TrimSuffix(in[i].Path, "/")) {
			return nil, Obstacle{Pid: t.Pid, What: fmt.Sprintf("is in control group %s of hierarchy %q, outside of its own cgroup namespace", m.Path, m.Hierarchy)}
		}
		view.prefix[m.Hierarchy] = len(strings.TrimSuffix(m.Path, "/")) - len(strings.TrimSuffix(in[i].Path, "/"))
	}
	return view, nil
}

func membersOf(t *Task) ([]cgroup.Member, error) {
	text, err := t.Proc.Read("cgroup")
	if err != nil {
		return nil, err
	}
	return cgroup.ParseMembers(string(text))
}

// number numbers the set that a file of /proc describes.
func (c *Cgroups) number(f cgroupFile) (uint32, error) {
	if id := c.texts[f]; id != 0 {
		return id, nil
	}
	members, err := cgroup.ParseMembers(f.text)
	if err != nil {
		return 0, err
	}
	set := &img.CgSetEntry{}
	var key strings.Builder
	for _, m := range members {
		if c.skip(m.Hierarchy) || m.Path == "/" && !c.known(m.Hierarchy) {
			continue
		}
		e := &img.CgMemberEntry{Name: proto.String(m.Hierarchy), Path: proto.String(m.Path)}
		if f.inside {
			if n := c.inside.prefix[m.Hierarchy]; n > 0 && n <= len(m.Path) {
				e.CgnsPrefix = proto.Uint32(uint32(n))
			}
		}
		fmt.Fprintf(&key, "%s\n%s\n%d\n", m.Hierarchy, m.Path, e.GetCgnsPrefix())
		set.Ctls = append(set.Ctls, e)
	}
	id := c.ids[key.String()]
	if id == 0 {
		id = uint32(len(c.sets) + 1)
		set.Id = proto.Uint32(id)
		c.sets = append(c.sets, set)
		c.ids[key.String()] = id
	}
	c.texts[f] = id
	return id, nil
}

// known says whether a hierarchy was there when the dump began. In a later one all tasks are at the root: that alone
// does not make them differ from the tool.
func (c *Cgroups) known(hierarchy string) bool {
	return slices.ContainsFunc(c.here, func(m cgroup.Member) bool { return m.Hierarchy == hierarchy })
}

// skip says whether the user wants nothing to be kept of a hierarchy.
func (c *Cgroups) skip(hierarchy string) bool {
	only := c.o.CgroupDumpControllers
	return len(only) > 0 && !slices.Contains(only, hierarchy)
}

// Groups stores the groups all sets but the tool's own are made of: call it when all threads have been collected. It is
// nil when there is no other set.
func (c *Cgroups) Groups() (*img.CgroupEntry, error) {
	if len(c.sets) < 2 {
		return nil, nil
	}
	e := &img.CgroupEntry{Sets: c.sets[1:], Controllers: c.controllers()}
	if c.o.ManageCgroups == options.CgroupIgnore {
		return e, nil
	}
	w := &groupWalk{props: c.props, frozen: c.frozen, h: cgroup.Hierarchies{Yard: c.o.CgroupYard}}
	defer w.h.Close()
	shared := cgroup.Shared()
	for _, ctl := range e.Controllers {
		heads, hierarchy := c.heads(ctl, shared)
		if len(heads) == 0 {
			continue
		}
		w.bare = shared && c.newRoot(hierarchy) != "/"
		if err := w.controller(ctl, hierarchy, heads); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// controllers lists what hierarchies there are: those with controllers as the kernel lists them, then those that have only
// a name, as they are met.
func (c *Cgroups) controllers() []*img.CgControllerEntry {
	var all []*img.CgControllerEntry
	for _, m := range c.here {
		names := slices.DeleteFunc(cgroup.Parts(m.Hierarchy), cgroup.Named)
		if len(names) > 0 && !c.skip(m.Hierarchy) {
			all = append(all, &img.CgControllerEntry{Cnames: names, IsThreaded: proto.Bool(false)})
		}
	}
	for _, set := range c.sets[1:] {
		for _, m := range set.Ctls {
			if !slices.ContainsFunc(all, func(e *img.CgControllerEntry) bool { return owns(e, m.GetName()) }) {
				all = append(all, &img.CgControllerEntry{Cnames: []string{m.GetName()}, IsThreaded: proto.Bool(false)})
			}
		}
	}
	return all
}

// owns says whether an entry is about a hierarchy.
func owns(e *img.CgControllerEntry, hierarchy string) bool {
	return slices.ContainsFunc(e.Cnames, func(name string) bool { return cgroup.Same(name, hierarchy) })
}

// heads lists the groups of a hierarchy that are stored with all that is below them: those that threads are in, or the one
// that the user has named as their root; none is below another. A root that is shared with all others of the machine is
// stored without what is below it.
func (c *Cgroups) heads(e *img.CgControllerEntry, shared bool) (heads []string, hierarchy string) {
	var all []string
	for _, set := range c.sets[1:] {
		for _, m := range set.Ctls {
			if !owns(e, m.GetName()) {
				continue
			}
			hierarchy = m.GetName()
			all = append(all, m.GetPath())
			if root := c.newRoot(hierarchy); root != "" {
				all = append(all, root)
			}
		}
	}
	shared = shared && c.newRoot(hierarchy) != "/"
	slices.Sort(all)
	for _, path := range all {
		covers := func(head string) bool { return below(path, head) && (head != "/" || path == "/" || !shared) }
		if !slices.ContainsFunc(heads, covers) {
			heads = append(heads, path)
		}
	}
	return heads, hierarchy
}

// below says whether path is head or below it.
func below(path, head string) bool {
	head = strings.TrimSuffix(head, "/")
	return path == head || strings.HasPrefix(path, head+"/")
}

// newRoot is what --cgroup-root says of a hierarchy.
func (c *Cgroups) newRoot(hierarchy string) string {
	root := ""
	for _, r := range c.o.CgroupRoots {
		switch {
		case r.Key != "" && r.Key == hierarchy:
			return r.Value
		case r.Key == "":
			root = r.Value
		}
	}
	return root
}

// permsOf is the mode and the owner of a file of a group.
func permsOf(f *os.File) (*img.CgroupPerms, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &img.CgroupPerms{Mode: proto.Uint32(st.Mode), Uid: proto.Uint32(st.Uid), Gid: proto.Uint32(st.Gid)}, nil
}
