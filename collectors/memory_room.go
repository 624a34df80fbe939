package collectors

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unique"
)

// memoryController is how one version of control groups tells of memory.
type memoryController struct {
	root, limit, usage string
	unlimited          string
	reclaimable        []string // keys of memory.stat: what the kernel gives up before it kills
}

var (
	memoryV1 = memoryController{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
		"9223372036854771712", // the largest multiple of the page size
		[]string{"total_inactive_file", "total_active_file"}}
	memoryV2 = memoryController{"/sys/fs/cgroup", "memory.max", "memory.current", "max",
		[]string{"inactive_file", "active_file"}}
)

// memoryGroup is the group of a hierarchy with memory limits that a task is in.
type memoryGroup struct {
	*memoryController
	group string
}

// memoryGroups are the groups that /proc/PID/cgroup names, without those of the lines to skip.
func memoryGroups(text, skip string) (list []memoryGroup) {
	for line := range strings.Lines(text) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(field) != 3 || strings.Contains("\n"+skip, "\n"+line):
		case field[0] == "0" && field[1] == "":
			list = append(list, memoryGroup{&memoryV2, field[2]})
		case slices.Contains(strings.Split(field[1], ","), "memory"):
			list = append(list, memoryGroup{&memoryV1, field[2]})
		}
	}
	return list
}

// cgroupUnlimited says whether page cache that the task makes is charged to nobody who has a limit that the tool has
// not: it is in the tool's memory cgroup, or in one without limits up to the root.
func (by *SelfWriting) cgroupUnlimited(t *Task) (bool, error) {
	theirs := t.Leader().cgroups
	if theirs == (unique.Handle[string]{}) {
		return false, nil
	}
	for _, g := range memoryGroups(theirs.Value(), by.groups) {
		limited := false
		known, err := g.limits(func(string, string) error {
			limited = true
			return nil
		})
		if err != nil || !known || limited {
			return false, err
		}
	}
	return true, nil
}

// limits calls yield for the group and all above it that have a limit. Where the hierarchy is not to be found, nothing is
// known.
func (g memoryGroup) limits(yield func(dir, limit string) error) (known bool, err error) {
	for group := g.group; group != "/" && group != "."; group = path.Dir(group) {
		dir := path.Join(g.root, group)
		b, err := os.ReadFile(path.Join(dir, g.limit))
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(dir); err == nil {
				continue // the memory controller is not enabled for this group
			}
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if limit := strings.TrimSpace(string(b)); limit != g.unlimited {
			if err := yield(dir, limit); err != nil {
				return true, err
			}
		}
	}
	return true, nil
}

// room is how many bytes more the tasks of the group may use; MaxUint64 without limits.
func (g memoryGroup) room() (uint64, error) {
	room := uint64(math.MaxUint64)
	known, err := g.limits(func(dir, text string) error {
		limit, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", dir, g.limit, err)
		}
		b, err := os.ReadFile(path.Join(dir, g.usage))
		if err != nil {
			return err
		}
		used, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", dir, g.usage, err)
		}
		used -= min(used, keyed(path.Join(dir, "memory.stat"), 1, g.reclaimable...))
		room = min(room, limit-min(limit, used))
		return nil
	})
	if err == nil && !known {
		err = fmt.Errorf("the memory limits of control group %s are not to be seen", g.group)
	}
	return room, err
}

// keyed adds up what a file of lines "key value" says of some keys, in the given unit.
func keyed(file string, unit uint64, keys ...string) (sum uint64) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || !slices.Contains(keys, strings.TrimSuffix(f[0], ":")) {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			sum += n * unit
		}
	}
	return sum
}

// RoomForCopies tells whether there is room for the pages that tasks write to while there are copy-on-write copies of
// them: at worst all. What they write is charged to their own control groups. The error says what stands against it.
func RoomForCopies(tasks []*Task) error {
	var need uint64
	groups := map[memoryGroup]uint64{}
	for _, t := range tasks {
		own := t.Status.RssAnon << 10
		need += own
		text, err := t.Proc.Read("cgroup")
		if err != nil {
			return err
		}
		for _, g := range memoryGroups(string(text), "") {
			groups[g] += own
		}
	}
	if available := keyed("/proc/meminfo", 1<<10, "MemAvailable"); available < need { // Linux 3.14
		return fmt.Errorf("%d MiB of memory are available, and the tasks may need %d", available>>20, need>>20)
	}
	for g, need := range groups {
		room, err := g.room()
		if err != nil {
			return err
		}
		if room < need {
			return fmt.Errorf("control group %s has room for %d MiB, and its tasks may need %d", g.group, room>>20, need>>20)
		}
	}
	return nil
}
