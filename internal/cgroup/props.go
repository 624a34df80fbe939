package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Properties says which files of a group are state, for each controller.
type Properties map[string][]string

// defaults are the properties of version 1. The order is the one they are written in: memory.limit_in_bytes may not exceed
// memory.memsw.limit_in_bytes, so that it comes first.
var defaults = Properties{
	"cpu": {"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us", "cpu.rt_runtime_us"},
	"memory": {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness", "memory.soft_limit_in_bytes",
		"memory.move_charge_at_immigrate", "memory.oom_control", "memory.use_hierarchy", "memory.kmem.limit_in_bytes",
		"memory.kmem.tcp.limit_in_bytes"},
	"cpuset": {"cpuset.cpus", "cpuset.mems", "cpuset.memory_migrate", "cpuset.cpu_exclusive", "cpuset.mem_exclusive",
		"cpuset.mem_hardwall", "cpuset.memory_spread_page", "cpuset.memory_spread_slab", "cpuset.sched_load_balance",
		"cpuset.sched_relax_domain_level"},
	"blkio":      {"blkio.weight"},
	"freezer":    {},
	"perf_event": {},
	"net_cls":    {"net_cls.classid"},
	"net_prio":   {"net_prio.ifpriomap"},
	"pids":       {"pids.max"},
	"devices":    {"devices.list"},
}

// Files that every group has. Of the lists of members only the permissions matter.
var (
	every1 = []string{"cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks"}
	every2 = []string{"cgroup.subtree_control", "cgroup.max.descendants", "cgroup.max.depth", "cgroup.freeze", "cgroup.type"}
)

// DefaultProperties are those without a wish of the user.
func DefaultProperties() Properties { return maps.Clone(defaults) }

// Of lists the properties of groups of a hierarchy, given its controllers.
func (p Properties) Of(controllers []string) []string {
	var all []string
	for _, c := range controllers {
		all = append(all, p[c]...)
	}
	if slices.Equal(controllers, []string{""}) {
		return append(all, every2...)
	}
	return append(all, every1...)
}

// Add changes p as a specification says. It is in a subset of YAML, strings in quotes:
//
//	"controller":
//	  - "strategy": "merge"
//	  - "properties": ["a", "b"]
//
// The strategy is merge, which adds to what the controller has, or replace. Errors name the line.
func (p Properties) Add(spec string) error {
	s := &specScanner{rest: spec, line: 1}
	for !s.end() {
		controller, strategy, props, err := s.entry()
		if err != nil {
			return fmt.Errorf("line %d: %w", s.line, err)
		}
		if strategy == "merge" {
			props = append(slices.Clone(p[controller]), props...)
		}
		p[controller] = props
	}
	return nil
}

// specScanner reads a specification. White space has no meaning.
type specScanner struct {
	rest string
	line int
}

func (s *specScanner) skip() {
	trimmed := strings.TrimLeft(s.rest, " \t\r\n")
	s.line += strings.Count(s.rest[:len(s.rest)-len(trimmed)], "\n")
	s.rest = trimmed
}

func (s *specScanner) end() bool {
	s.skip()
	return s.rest == ""
}

func (s *specScanner) entry() (controller, strategy string, props []string, err error) {
	if controller, err = s.text("the name of a controller"); err != nil {
		return
	}
	if err = s.all(":", "-", `"strategy"`, ":"); err != nil {
		return
	}
	if strategy, err = s.text("a strategy"); err != nil {
		return
	}
	if strategy != "merge" && strategy != "replace" {
		return "", "", nil, fmt.Errorf("strategy %q of controller %q is neither merge nor replace", strategy, controller)
	}
	if err = s.all("-", `"properties"`, ":", "["); err != nil {
		return
	}
	for !s.take("]") {
		if len(props) > 0 && !s.take(",") {
			return "", "", nil, s.expected(`"," or "]"`)
		}
		prop, err := s.text("a property")
		if err != nil {
			return "", "", nil, err
		}
		if err := CheckProperty(prop); err != nil {
			return "", "", nil, err
		}
		props = append(props, prop)
	}
	return
}

func (s *specScanner) take(token string) bool {
	s.skip()
	rest, ok := strings.CutPrefix(s.rest, token)
	if ok {
		s.rest = rest
	}
	return ok
}

func (s *specScanner) all(tokens ...string) error {
	for _, t := range tokens {
		if !s.take(t) {
			return s.expected(t)
		}
	}
	return nil
}

func (s *specScanner) text(what string) (string, error) {
	if !s.take(`"`) {
		return "", s.expected(what + ", in quotes")
	}
	text, rest, ok := strings.Cut(s.rest, `"`)
	if !ok || text == "" {
		return "", s.expected(what)
	}
	s.rest = rest
	return text, nil
}

func (s *specScanner) expected(what string) error {
	s.skip()
	found := s.rest
	if found == "" {
		return fmt.Errorf("%s is missing at the end", what)
	}
	return fmt.Errorf("%s expected before %.20q", what, found)
}
