package collectors

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"cryo/internal/cgroup"

	img "github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// groupWalk stores groups and all that are below them: their permissions and properties.
type groupWalk struct {
	props  cgroup.Properties
	frozen *FreezeGroup
	h      cgroup.Hierarchies
	names  []string // properties of the hierarchy at hand
	bare   bool     // what is below its root is others'
}

// controller stores the groups of one hierarchy.
func (w *groupWalk) controller(e *img.CgControllerEntry, hierarchy string, heads []string) error {
	root, err := w.h.Root(hierarchy)
	if err != nil {
		return err
	}
	w.names = w.props.Of(e.Cnames)
	for _, head := range heads {
		name := strings.Trim(head, "/")
		if strings.HasPrefix(name, "..") {
			return fmt.Errorf("control group %s of hierarchy %q is outside of the tool's cgroup namespace: start the tool in the namespace the groups are in", head, hierarchy)
		}
		dir, err := cgroup.Open(root, name, unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("control group %s of hierarchy %q: %w", head, hierarchy, err)
		}
		d, err := w.group(e, dir, name)
		dir.Close()
		if err != nil {
			return err
		}
		e.Dirs = append(e.Dirs, d)
	}
	if w.frozen != nil && slices.Contains(e.Cnames, "freezer") {
		state := "THAWED"
		if w.frozen.Found {
			state = "FROZEN"
		}
		head := e.Dirs[0]
		head.Properties = append(head.Properties, &img.CgroupPropEntry{Name: proto.String("freezer.state"), Value: &state, Perms: freezerPerms()})
	}
	return nil
}

// freezerPerms are what the kernel gives freezer.state.
func freezerPerms() *img.CgroupPerms {
	return &img.CgroupPerms{Mode: proto.Uint32(unix.S_IFREG | 0o644), Uid: proto.Uint32(0), Gid: proto.Uint32(0)}
}

// group stores a group and those below it.
func (w *groupWalk) group(e *img.CgControllerEntry, dir *os.File, name string) (*img.CgroupDirEntry, error) {
	d := &img.CgroupDirEntry{DirName: proto.String(name)}
	var err error
	if d.DirPerms, err = permsOf(dir); err != nil {
		return nil, err
	}
	if d.Properties, err = w.properties(dir); err != nil {
		return nil, err
	}
	for _, p := range d.Properties {
		// Threads can be in groups of their own in version 1, and in threaded groups of version 2.
		if p.GetName() == "tasks" || p.GetName() == "cgroup.type" && p.GetValue() == "threaded" {
			e.IsThreaded = proto.Bool(true)
		}
	}
	if name == "" && w.bare {
		return d, nil
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		sub, err := cgroup.Open(dir, entry.Name(), unix.O_DIRECTORY)
		if vanished(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := w.group(e, sub, entry.Name())
		sub.Close()
		if vanished(err) {
			continue // a group of somebody else: those of the tree have tasks in them
		}
		if err != nil {
			return nil, err
		}
		d.Children = append(d.Children, c)
	}
	return d, nil
}

// vanished says whether an error comes from a group that was removed meanwhile.
func vanished(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// properties stores the properties of a group. Those that the kernel does not have are left out.
func (w *groupWalk) properties(dir *os.File) ([]*img.CgroupPropEntry, error) {
	var all []*img.CgroupPropEntry
	for _, name := range w.names {
		f, err := cgroup.Open(dir, name, unix.O_RDONLY)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := w.property(dir, f, name)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("property %s of control group %s: %w", name, dir.Name(), err)
		}
		all = append(all, p)
	}
	return all, nil
}

func (w *groupWalk) property(dir, f *os.File, name string) (*img.CgroupPropEntry, error) {
	p := &img.CgroupPropEntry{Name: proto.String(name), Value: proto.String("")}
	var err error
	if p.Perms, err = permsOf(f); err != nil {
		return nil, err
	}
	switch name {
	case "cgroup.procs", "tasks":
		return p, nil // who is in it, the sets say
	case "cgroup.freeze":
		if own, err := w.byTool(dir); own != "" || err != nil {
			p.Value = &own
			return p, err
		}
	}
	text, err := cgroup.ReadProperty(dir, name)
	if err != nil {
		return nil, err
	}
	p.Value, err = storable(name, text)
	return p, err
}

// byTool is what cgroup.freeze was in the group the tool freezes; empty for all others.
func (w *groupWalk) byTool(dir *os.File) (string, error) {
	if w.frozen == nil {
		return "", nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || st.Ino != w.frozen.Dir.Ino || st.Dev != w.frozen.Dir.Dev {
		return "", err
	}
	if w.frozen.Found {
		return "1", nil
	}
	return "0", nil
}

// storable turns what a property says into what has to be written to have it say so again.
func storable(name, text string) (*string, error) {
	if name == "memory.oom_control" {
		var disable int
		if _, err := fmt.Sscanf(text, "oom_kill_disable %d", &disable); err != nil {
			return nil, fmt.Errorf("%.40q is not understood", text)
		}
		return proto.String(strconv.Itoa(disable)), nil
	}
	if text == strconv.Itoa(math.MaxInt64) { // no limit
		text = "-1"
	}
	return &text, nil
}
