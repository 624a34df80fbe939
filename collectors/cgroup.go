package collectors

import (
	"fmt"
	"sort"
	"strings"

	"cryo/internal/procfs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"google.golang.org/protobuf/proto"
)

// Cgroups numbers the sets of control groups that threads are in: cgroup.img. The tool's own set is number 1; tasks that
// share it are left where a restore finds itself, so it is not stored.
type Cgroups struct {
	sets map[string]uint32
	list []*cgroup.CgSetEntry
	dirs map[string]map[string]bool // controller: paths
}

// NewCgroups reads the tool's own set.
func NewCgroups() (*Cgroups, error) {
	c := &Cgroups{sets: map[string]uint32{}, dirs: map[string]map[string]bool{}}
	self, err := procfs.OpenTask(selfPid())
	if err != nil {
		return nil, err
	}
	defer self.Close()
	text, err := self.Read("cgroup")
	if err == nil {
		_, err = c.set(text)
	}
	return c, err
}

// Own is the number of the tool's own set.
func (c *Cgroups) Own() uint32 { return 1 }

// Number notes in the image of each thread the number of its set.
func (c *Cgroups) Number(t *Task) error {
	for _, th := range t.Threads {
		id, err := c.set(th.cgroups)
		if err != nil {
			return err
		}
		th.Core.ThreadCore.CgSet = proto.Uint32(id)
	}
	return nil
}

// set numbers the set that the text of a cgroup file of /proc describes.
func (c *Cgroups) set(text []byte) (uint32, error) {
	if id := c.sets[string(text)]; id != 0 {
		return id, nil
	}
	id := uint32(len(c.sets) + 1)
	set, err := parseCgroups(string(text))
	if err != nil {
		return 0, err
	}
	set.Id = proto.Uint32(id)
	c.sets[string(text)] = id
	c.list = append(c.list, set)
	return id, nil
}

// parseCgroups reads lines of the form "hierarchy:controller,controller:path".
func parseCgroups(text string) (*cgroup.CgSetEntry, error) {
	set := &cgroup.CgSetEntry{}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			return nil, &procfs.FormatError{File: "a cgroup file of /proc", Text: line}
		}
		set.Ctls = append(set.Ctls, &cgroup.CgMemberEntry{Name: proto.String(f[1]), Path: proto.String(f[2])})
	}
	sort.SliceStable(set.Ctls, func(i, j int) bool { return set.Ctls[i].GetName() < set.Ctls[j].GetName() })
	return set, nil
}

// Entry is the image of all sets but the tool's own; nil when there is no other. Of the groups themselves it holds the
// names, so that a restore can make those that are missing.
func (c *Cgroups) Entry() *cgroup.CgroupEntry {
	if len(c.list) < 2 {
		return nil
	}
	e := &cgroup.CgroupEntry{Sets: c.list[1:]}
	controllers := map[string]*cgroup.CgControllerEntry{}
	for _, set := range e.Sets {
		for _, m := range set.Ctls {
			name := m.GetName()
			ctl := controllers[name]
			if ctl == nil {
				ctl = &cgroup.CgControllerEntry{Cnames: strings.Split(name, ","), IsThreaded: proto.Bool(false)}
				controllers[name] = ctl
				c.dirs[name] = map[string]bool{}
				e.Controllers = append(e.Controllers, ctl)
			}
			if !c.dirs[name][m.GetPath()] {
				c.dirs[name][m.GetPath()] = true
				ctl.Dirs = append(ctl.Dirs, &cgroup.CgroupDirEntry{DirName: m.Path})
			}
		}
	}
	return e
}

func (c *Cgroups) String() string { return fmt.Sprintf("%d sets of control groups", len(c.sets)) }
