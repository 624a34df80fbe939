package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Hierarchies are the roots of hierarchies, each opened once. The zero value looks for mounts; it is for one goroutine.
type Hierarchies struct {
	// Yard is a directory with one mounted hierarchy in each subdirectory, named after its controllers. Where it is
	// given it is looked in first.
	Yard string

	mounts []mount
	roots  map[string]*os.File
}

// mount is one place where a hierarchy can be seen whole.
type mount struct {
	path         string
	v2           bool
	options      []string
	major, minor int
}

// Root opens the root of a hierarchy, which stays the owner's: do not close it.
func (h *Hierarchies) Root(hierarchy string) (*os.File, error) {
	if f := h.roots[hierarchy]; f != nil {
		return f, nil
	}
	f, err := h.open(hierarchy)
	if err != nil {
		return nil, err
	}
	if h.roots == nil {
		h.roots = map[string]*os.File{}
	}
	h.roots[hierarchy] = f
	return f, nil
}

// Close closes all roots.
func (h *Hierarchies) Close() {
	for _, f := range h.roots {
		f.Close()
	}
	h.roots = nil
}

func (h *Hierarchies) open(hierarchy string) (*os.File, error) {
	if h.Yard != "" {
		f, err := openRoot(filepath.Join(h.Yard, yardName(hierarchy)))
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
	}
	if err := h.readMounts(); err != nil {
		return nil, err
	}
	for _, m := range h.mounts {
		if m.of(hierarchy) {
			if f, err := m.open(); err == nil {
				return f, nil
			}
		}
	}
	if hierarchy == "" {
		return nil, errors.New("the unified hierarchy (cgroup2) is mounted nowhere in sight: mount it, or name with --cgroup-yard a directory where it is mounted as unified")
	}
	f, err := mountDetached(hierarchy)
	if err != nil {
		return nil, fmt.Errorf("control group hierarchy %q is mounted nowhere in sight and cannot be mounted: %w", hierarchy, err)
	}
	return f, nil
}

func openRoot(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("statfs %s: %w", path, err)
	}
	if st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC {
		f.Close()
		return nil, fmt.Errorf("%s is no control group: nothing of the kind is mounted there", path)
	}
	return f, nil
}

// readMounts lists the mounts the tool sees, and behind them those that init sees.
func (h *Hierarchies) readMounts() error {
	if h.mounts != nil {
		return nil
	}
	whole := func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2" || m.Root != "/", false
	}
	own, err := mountinfo.GetMounts(whole)
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	h.add(own, "/")
	f, err := os.Open("/proc/1/mountinfo")
	if err != nil {
		return nil // init is out of reach
	}
	defer f.Close()
	if init, err := mountinfo.GetMountsFromReader(f, whole); err == nil {
		h.add(init, "/proc/1/root")
	}
	return nil
}

func (h *Hierarchies) add(mounts []*mountinfo.Info, root string) {
	for _, m := range mounts {
		h.mounts = append(h.mounts, mount{
			path: filepath.Join(root, m.Mountpoint), v2: m.FSType == "cgroup2", options: strings.Split(m.VFSOptions, ","),
			major: m.Major, minor: m.Minor,
		})
	}
}

// of says whether m shows a hierarchy.
func (m *mount) of(hierarchy string) bool {
	if hierarchy == "" || m.v2 {
		return hierarchy == "" && m.v2
	}
	for _, p := range Parts(hierarchy) {
		if !slices.Contains(m.options, p) {
			return false
		}
	}
	return true
}

// open opens the root, if no other mount covers it.
func (m *mount) open() (*os.File, error) {
	f, err := openRoot(m.path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Dev != unix.Mkdev(uint32(m.major), uint32(m.minor)) {
		err = fmt.Errorf("%s is covered by another mount", m.path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// initNamespace is the inode of the cgroup namespace of the machine (PROC_CGROUP_INIT_INO, Linux 4.6).
const initNamespace = 0xEFFFFFFB

// Shared says whether the root groups the tool sees are those of the whole machine, so that what is below them belongs to
// others as well. In a namespace of a container it is the container's.
func Shared() bool {
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/cgroup", &st)
	return err != nil || st.Ino == initNamespace
}

// mountDetached mounts a hierarchy of version 1 at no place. It is unmounted when the file is closed.
func mountDetached(hierarchy string) (*os.File, error) {
	fs, err := unix.Fsopen("cgroup", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, p := range Parts(hierarchy) {
		if name, ok := strings.CutPrefix(p, namePrefix); ok {
			err = unix.FsconfigSetString(fs, "name", name)
		} else {
			err = unix.FsconfigSetFlag(fs, p)
		}
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", p, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(fd)
	// What fsmount returns is O_PATH; the directory itself can be read, and keeps the mount.
	dir, err := unix.Openat(fd, ".", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dir), hierarchy+":/"), nil
}
