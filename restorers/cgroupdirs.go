package restorers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"cryo/internal/cgroup"
	"cryo/internal/image"
	"cryo/internal/options"

	img "github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"golang.org/x/sys/unix"
)

// groupDir is one group of the set.
type groupDir struct {
	*img.CgroupDirEntry
	ctl       *img.CgControllerEntry
	hierarchy string // its name here
	path      string
	was       bool // it is there already
}

func (g *groupDir) String() string {
	return fmt.Sprintf("control group /%s of hierarchy %q", g.path, g.hierarchy)
}

// GroupChange is a change of a group that a failed restore takes back.
type GroupChange struct {
	Name string // "make control group ..."
	Back func(context.Context) error
	// Made is the directory a group is made in and its name there; Wrote a file that was written to and what it said before. One of them
	// is nil.
	Made  *MadeGroup
	Wrote *WroteProperty
}

// MadeGroup is a group that is about to be made.
type MadeGroup struct {
	Parent *os.File
	Name   string
}

// WroteProperty is a property that is about to be changed.
type WroteProperty struct {
	File *os.File
	Was  string
}

// maxControlGroups is more groups than a host has.
const maxControlGroups = 1 << 20

// listDirs checks the groups of a hierarchy and looks which of them are there.
func (c *Cgroups) listDirs(ctl *img.CgControllerEntry) error {
	if len(ctl.Dirs) == 0 {
		return nil
	}
	hierarchy := strings.Join(ctl.Cnames, ",")
	for _, set := range c.entry.Sets {
		for _, m := range set.Ctls {
			if isOf(ctl, m.GetName()) {
				hierarchy = m.GetName()
			}
		}
	}
	root, err := c.h.Root(hierarchy)
	if err != nil {
		return fmt.Errorf("%w; to leave control groups alone, restore with --manage-cgroups=ignore", err)
	}
	for _, d := range ctl.Dirs {
		if err := c.listDir(root, ctl, hierarchy, "", d); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cgroups) listDir(root *os.File, ctl *img.CgControllerEntry, hierarchy, parent string, d *img.CgroupDirEntry) error {
	name, err := cgroup.Clean(d.GetDirName())
	if err == nil {
		for _, p := range d.Properties {
			err = errors.Join(err, cgroup.CheckProperty(p.GetName()))
		}
	}
	if err == nil && len(c.dirs) == maxControlGroups {
		err = fmt.Errorf("there are more than %d groups", maxControlGroups)
	}
	if err != nil {
		return image.Errorf(image.Cgroup.File(0), 0, "hierarchy %q: %w", hierarchy, err)
	}
	g := &groupDir{CgroupDirEntry: d, ctl: ctl, hierarchy: hierarchy, path: join(parent, name)}
	if c.stranger(g) {
		return nil
	}
	dir, err := cgroup.Open(root, g.path, unix.O_DIRECTORY)
	switch {
	case err == nil:
		g.was = true
		dir.Close()
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	c.dirs = append(c.dirs, g)
	for _, child := range d.Children {
		if err := c.listDir(root, ctl, hierarchy, g.path, child); err != nil {
			return err
		}
	}
	return nil
}

// stranger says whether a group belongs to no task of the set. Where a task is at the root of a hierarchy, criu stores all
// groups of the machine; only those of the tree, those above and those below them are made again.
func (c *Cgroups) stranger(g *groupDir) bool {
	if g.path == "" || !c.shared {
		return false
	}
	for _, set := range c.entry.Sets {
		for _, m := range set.Ctls {
			path := strings.Trim(m.GetPath(), "/")
			if path != "" && isOf(g.ctl, m.GetName()) && (under(path, g.path) || under(g.path, path)) {
				return false
			}
		}
	}
	return true
}

// refuse refuses what the mode does not allow. The root of a hierarchy is always there.
func (c *Cgroups) refuse() error {
	mode := c.o.ManageCgroups
	for _, g := range c.dirs {
		if !g.was && (mode == options.CgroupNone || mode == options.CgroupProps) {
			return fmt.Errorf("%s does not exist: make it, or let it be made with --manage-cgroups=soft", g)
		}
		if g.was && g.path != "" && mode == options.CgroupStrict {
			return fmt.Errorf("%s exists already, which --manage-cgroups=strict forbids", g)
		}
	}
	return nil
}

// Prepare makes the groups that are not there, with what has to be set as long as they are empty.
func (c *Cgroups) Prepare(undo GroupUndo) error {
	if c == nil {
		return nil
	}
	c.undo = undo
	for _, g := range c.dirs {
		if err := c.prepare(g); err != nil {
			return err
		}
	}
	// What a group hands on to those below it; they are all there and nobody is in them.
	for _, g := range c.dirs {
		if g.was {
			continue
		}
		for _, p := range g.Properties {
			if p.GetName() == subtreeControl {
				if err := c.set(g, p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *Cgroups) prepare(g *groupDir) error {
	if g.was {
		if c.o.ManageCgroups == options.CgroupNone {
			return nil
		}
		return c.permitDir(g)
	}
	root, err := c.h.Root(g.hierarchy)
	if err != nil {
		return err
	}
	made, err := c.mkdirs(root, g)
	if err != nil {
		return fmt.Errorf("make %s: %w", g, err)
	}
	if !made { // by somebody else, meanwhile
		g.was = true
		return c.refuse()
	}
	if err := c.permitDir(g); err != nil {
		return err
	}
	for _, p := range g.Properties {
		if early(p.GetName()) {
			if err := c.setEarly(g, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// mkdirs makes a group and those above it, and says whether it was not there.
func (c *Cgroups) mkdirs(root *os.File, g *groupDir) (made bool, err error) {
	parts := strings.Split(g.path, "/")
	dir := root
	defer func() {
		if dir != root {
			dir.Close()
		}
	}()
	for _, name := range parts {
		next, err := cgroup.Open(dir, name, unix.O_DIRECTORY)
		made = false
		if errors.Is(err, unix.ENOENT) {
			if made, err = c.mkdir(dir, name); err == nil {
				next, err = cgroup.Open(dir, name, unix.O_DIRECTORY)
			}
		}
		if err != nil {
			return false, err
		}
		if dir != root {
			dir.Close()
		}
		dir = next
	}
	return made, nil
}

func (c *Cgroups) mkdir(parent *os.File, name string) (made bool, err error) {
	// The parent is held until the undo step has run or is dropped.
	held, err := cgroup.Open(parent, "", unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	done, err := c.undo(GroupChange{
		Name: "make control group " + path.Join(parent.Name(), name),
		Back: func(ctx context.Context) error { return cgroup.Remove(ctx, held, name) },
		Made: &MadeGroup{held, name},
	})
	if err != nil {
		return false, err
	}
	err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
	if errors.Is(err, unix.EEXIST) {
		done()
		return false, nil
	}
	return err == nil, err
}

// permitDir gives a group the owner and the mode it had.
func (c *Cgroups) permitDir(g *groupDir) error {
	if g.DirPerms == nil {
		return nil
	}
	dir, err := c.open(g.hierarchy, g.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return c.permit(dir, g.DirPerms, g.was)
}

// permit gives a file of a group its owner and mode, if it has others.
func (c *Cgroups) permit(f *os.File, p *img.CgroupPerms, was bool) error {
	if p == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Uid == p.GetUid() && st.Gid == p.GetGid() && st.Mode&modeBits == p.GetMode()&modeBits {
		return nil
	}
	if was {
		held, err := hold(f)
		if err != nil {
			return err
		}
		_, err = c.undo(GroupChange{Name: "change the permissions of " + f.Name(), Back: func(context.Context) error {
			return errors.Join(held.Chown(int(st.Uid), int(st.Gid)), unix.Fchmod(int(held.Fd()), st.Mode&modeBits))
		}})
		if err != nil {
			return err
		}
	}
	if err := unix.Fchown(int(f.Fd()), int(p.GetUid()), int(p.GetGid())); err != nil {
		return fmt.Errorf("owner of %s: %w", f.Name(), err)
	}
	if err := unix.Fchmod(int(f.Fd()), p.GetMode()&modeBits); err != nil {
		return fmt.Errorf("mode of %s: %w", f.Name(), err)
	}
	return nil
}

const modeBits = 0o7777

// Properties sets what is left: limits, once nothing of the restore itself counts against them any more.
func (c *Cgroups) Properties() error {
	return c.properties(func(name string) bool { return !frozen(name) })
}

// Freeze sets the state of freezers. It is the last that happens to the tree: frozen tasks do nothing more.
func (c *Cgroups) Freeze() error { return c.properties(frozen) }

func (c *Cgroups) properties(want func(name string) bool) error {
	if c == nil {
		return nil
	}
	for _, g := range c.dirs {
		if g.path == "" || !c.setsProperties(g) {
			continue
		}
		for _, p := range g.Properties {
			name := p.GetName()
			if !want(name) || early(name) || name == subtreeControl && !g.was {
				continue
			}
			if err := c.set(g, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// setsProperties says whether the mode sets properties of a group.
func (c *Cgroups) setsProperties(g *groupDir) bool {
	switch c.o.ManageCgroups {
	case options.CgroupNone:
		return false
	case options.CgroupSoft:
		return !g.was
	}
	return true
}

const subtreeControl = "cgroup.subtree_control"

// earlyProperties cannot be set any more when there are tasks in a group, or groups below it.
var earlyProperties = []string{
	"cpuset.cpus", "cpuset.mems", "devices.list", "memory.kmem.limit_in_bytes", "memory.swappiness", "memory.oom_control",
	"memory.use_hierarchy", "cgroup.type",
}

func early(name string) bool { return slices.Contains(earlyProperties, name) }

// frozen says whether a property stops tasks.
func frozen(name string) bool { return name == "freezer.state" || name == "cgroup.freeze" }

// setEarly sets an early property. What kernels refuse to be told although it is their default is not told to them.
func (c *Cgroups) setEarly(g *groupDir, p *img.CgroupPropEntry) error {
	switch {
	case p.GetName() == "memory.swappiness" && p.GetValue() == "60", p.GetName() == "memory.oom_control" && p.GetValue() == "0":
		return nil
	case p.GetName() == "devices.list":
		return c.setDevices(g, p)
	}
	return c.set(g, p)
}

// setDevices forbids all devices and allows those of the list. devices.list itself can only be read; of what is written
// to devices.allow at once the kernel reads one line.
func (c *Cgroups) setDevices(g *groupDir, p *img.CgroupPropEntry) error {
	if err := c.write(g, "devices.deny", nil, "a"); err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(p.GetValue()) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return c.write(g, "devices.allow", nil, lines...)
}

// set sets a property as its kind demands.
func (c *Cgroups) set(g *groupDir, p *img.CgroupPropEntry) error {
	name, value := p.GetName(), p.GetValue()
	switch {
	case name == "cgroup.procs" || name == "tasks", name == "cgroup.type" && value != "threaded":
		return c.write(g, name, p.Perms)
	case name == subtreeControl:
		return c.setSubtree(g, p)
	case name == "net_prio.ifpriomap":
		return c.setPriorities(g, p)
	}
	return c.write(g, name, p.Perms, value)
}

// setSubtree hands the controllers of the list on, and no others.
func (c *Cgroups) setSubtree(g *groupDir, p *img.CgroupPropEntry) error {
	dir, err := c.open(g.hierarchy, g.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	now, err := cgroup.ReadProperty(dir, subtreeControl)
	if err != nil {
		return err
	}
	has, wants := strings.Fields(now), strings.Fields(p.GetValue())
	var change []string
	for _, s := range has {
		if !slices.Contains(wants, s) {
			change = append(change, "-"+s)
		}
	}
	for _, s := range wants {
		if !slices.Contains(has, s) {
			change = append(change, "+"+s)
		}
	}
	if len(change) == 0 {
		return c.write(g, subtreeControl, p.Perms)
	}
	return c.write(g, subtreeControl, p.Perms, strings.Join(change, " "))
}

// setPriorities sets priorities of network interfaces, one a line. None is the default, and those of interfaces that are
// not here are left out.
func (c *Cgroups) setPriorities(g *groupDir, p *img.CgroupPropEntry) error {
	for line := range strings.Lines(p.GetValue()) {
		f := strings.Fields(line)
		if len(f) != 2 {
			return image.Errorf(image.Cgroup.File(0), 0, "net_prio.ifpriomap of %s: %.40q is no interface with its priority", g, line)
		}
		if n, err := strconv.Atoi(f[1]); err == nil && n == 0 {
			continue
		}
		if err := c.write(g, p.GetName(), p.Perms, strings.Join(f, " ")); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return c.write(g, p.GetName(), p.Perms)
}

// write gives a property its permissions and writes values to it, one after the other. A property that this kernel does not
// have is a warning: its default holds.
func (c *Cgroups) write(g *groupDir, name string, perms *img.CgroupPerms, values ...string) error {
	dir, err := c.open(g.hierarchy, g.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := cgroup.Open(dir, name, unix.O_RDWR)
	if errors.Is(err, unix.EACCES) { // no file to be read
		f, err = cgroup.Open(dir, name, unix.O_WRONLY)
	}
	if errors.Is(err, unix.ENOENT) {
		slog.Warn("this kernel does not know a property of a control group, which is left alone", "group", g.String(), "property", name, "values", values)
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.permit(f, perms, g.was); err != nil {
		return err
	}
	if (g.was || frozen(name)) && len(values) > 0 {
		if err := c.noteValue(f, name); err != nil {
			return err
		}
	}
	for _, value := range values {
		if value == "" {
			continue // the kernel takes it for no call at all
		}
		_, err := unix.Write(int(f.Fd()), []byte(value))
		if errors.Is(err, unix.EOPNOTSUPP) && name == "memory.kmem.limit_in_bytes" {
			continue // no more a limit since Linux 5.16
		}
		if err != nil {
			return fmt.Errorf("set %s of %s to %.100q: %w", name, g, value, err)
		}
	}
	return nil
}

// noteValue puts what a property says now on the undo stack.
func (c *Cgroups) noteValue(f *os.File, name string) error {
	buf := make([]byte, os.Getpagesize())
	n, err := unix.Pread(int(f.Fd()), buf, 0)
	if err != nil || n == 0 {
		return nil // it cannot be read, so what it was is not known
	}
	was := strings.TrimSuffix(string(buf[:n]), "\n")
	if name == subtreeControl || strings.Contains(was, "\n") {
		return nil // no value that could be written as it is
	}
	held, err := hold(f)
	if err != nil {
		return err
	}
	_, err = c.undo(GroupChange{
		Name:  "set " + f.Name(),
		Back:  func(context.Context) error { _, err := held.WriteAt([]byte(was), 0); return err },
		Wrote: &WroteProperty{held, was},
	})
	return err
}

// hold keeps a file open for an undo step.
func hold(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), f.Name()), err
}
