package cgroup

import (
	"fmt"
	"slices"
	"strings"
)

// Member says in which group of one hierarchy a thread is.
type Member struct{ Hierarchy, Path string }

// ParseMembers reads /proc/PID/cgroup: lines of the form "number:hierarchy:path", sorted by hierarchy.
func ParseMembers(text string) ([]Member, error) {
	var all []Member
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && strings.HasPrefix(f[1], "name=") && !strings.HasPrefix(f[2], "/") {
			// A colon in the name of a hierarchy: the path begins behind the last one that a slash follows.
			rest := f[1] + ":" + f[2]
			if i := strings.Index(rest, ":/"); i >= 0 {
				f[1], f[2] = rest[:i], rest[i+1:]
			}
		}
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			return nil, fmt.Errorf("%q is no line of /proc/PID/cgroup", line)
		}
		all = append(all, Member{f[1], f[2]})
	}
	slices.SortStableFunc(all, func(a, b Member) int { return strings.Compare(a.Hierarchy, b.Hierarchy) })
	return all, nil
}

const namePrefix = "name="

// Named says whether s is the name of a hierarchy, not a controller.
func Named(s string) bool { return strings.HasPrefix(s, namePrefix) }

// Parts are the controllers and the name of a hierarchy; of version 2, one empty string.
func Parts(hierarchy string) []string { return strings.Split(hierarchy, ",") }

// Same says whether two names are of one hierarchy: no controller and no name is in two.
func Same(a, b string) bool {
	if a == b {
		return true
	}
	theirs := Parts(b)
	return a != "" && b != "" && slices.ContainsFunc(Parts(a), func(s string) bool { return slices.Contains(theirs, s) })
}

// yardName is the directory of a hierarchy in a yard.
func yardName(hierarchy string) string {
	if hierarchy == "" {
		return "unified"
	}
	parts := Parts(hierarchy)
	for i, p := range parts {
		parts[i] = strings.TrimPrefix(p, namePrefix)
	}
	return strings.Join(parts, ",")
}
