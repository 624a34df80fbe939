package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cryo/internal/cgroup"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// groups are control groups of one test, in one hierarchy.
type groups struct {
	t    *testing.T
	root *os.File
	top  string
}

// newGroups makes a group with one below it and an empty one below that, in a hierarchy that is there.
func newGroups(t *testing.T, hierarchy string) *groups {
	t.Helper()
	RequireRoot(t)
	if text, err := os.ReadFile("/proc/self/cgroup"); err != nil || !strings.Contains(string(text), ":"+hierarchy+":") {
		t.Skipf("there is no control group hierarchy %q here", hierarchy)
	}
	h := &cgroup.Hierarchies{}
	t.Cleanup(h.Close)
	root, err := h.Root(hierarchy)
	if err != nil {
		t.Skip(err)
	}
	g := &groups{t, root, fmt.Sprintf("cryo-groups-%d", os.Getpid())}
	for _, name := range g.names() {
		err := unix.Mkdirat(int(root.Fd()), name, 0o755)
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
			t.Skipf("may not make control groups: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(g.remove)
	return g
}

// names are the groups, from the top down.
func (g *groups) names() []string { return []string{g.top, g.top + "/in", g.top + "/in/empty"} }

// remove removes all groups that are there.
func (g *groups) remove() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	names := g.names()
	for i := range names {
		if err := cgroup.Remove(ctx, g.root, names[len(names)-1-i]); err != nil {
			g.t.Error(err)
		}
	}
}

func (g *groups) exists(name string) bool {
	return unix.Faccessat(int(g.root.Fd()), name, unix.F_OK, 0) == nil
}

func (g *groups) write(name, file, value string) {
	g.t.Helper()
	dir, err := cgroup.Open(g.root, name, unix.O_DIRECTORY)
	if err == nil {
		defer dir.Close()
		err = cgroup.WriteProperty(dir, file, value)
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *groups) read(name, file string) string {
	g.t.Helper()
	dir, err := cgroup.Open(g.root, name, unix.O_DIRECTORY)
	if err != nil {
		g.t.Fatal(err)
	}
	defer dir.Close()
	text, err := cgroup.ReadProperty(dir, file)
	if err != nil {
		g.t.Fatal(err)
	}
	return text
}

// memberships is what each thread of a task says of its groups.
func memberships(t *testing.T, pid int) map[string]string {
	t.Helper()
	all := map[string]string{}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/cgroup", pid))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		all[list] = string(text)
	}
	return all
}

// grouped is a kind of hierarchy with what is set there.
type grouped struct {
	hierarchy      string
	threads        string // the list that a thread is moved by
	property, says string // of the group the task is in
}

var groupedKinds = []grouped{
	{"pids", "tasks", "pids.max", "123"},
	{"", "cgroup.threads", "cgroup.max.depth", "7"},
}

// start starts a task with threads, one of which is in a group of its own.
func (k grouped) start(t *testing.T) (*groups, *Target) {
	t.Helper()
	g := newGroups(t, k.hierarchy)
	g.write(g.top, k.property, k.says)
	if k.hierarchy == "" {
		g.write(g.top+"/in", "cgroup.type", "threaded")
		g.write(g.top+"/in/empty", "cgroup.type", "threaded")
	}
	target := tools.StartWorkload(t, "threads", "4")
	g.write(g.top, "cgroup.procs", strconv.Itoa(target.Pid))
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", target.Pid))
	if len(tasks) < 2 {
		t.Fatal("the workload has no threads")
	}
	g.write(g.top+"/in", k.threads, tasks[len(tasks)-1].Name())
	return g, target
}

// TestControlGroups restores a task into control groups that are no more, threads of it into another than its leader.
func TestControlGroups(t *testing.T) {
	for name, pair := range map[string][2]string{
		"ours": {tools.Criu, tools.Criu}, "peer restores ours": {tools.Criu, tools.Peer}, "ours restores peer": {tools.Peer, tools.Criu},
	} {
		for _, k := range groupedKinds {
			t.Run(fmt.Sprintf("%s/%q", name, k.hierarchy), func(t *testing.T) {
				if pair[0] == "" || pair[1] == "" {
					t.Skip("no CRIU_PEER")
				}
				g, target := k.start(t)
				before, images := memberships(t, target.Pid), t.TempDir()
				target.Dump(pair[0], images)
				g.remove()
				target.Restore(pair[1], images)
				if d := cmp.Diff(before, memberships(t, target.Pid)); d != "" {
					t.Error(d)
				}
				if got := g.read(g.top, k.property); got != k.says {
					t.Errorf("%s is %q", k.property, got)
				}
				if !g.exists(g.top + "/in/empty") {
					t.Error("an empty group is not there again")
				}
				target.Go()
			})
		}
	}
}

// TestControlGroupModes says what each mode does with groups that exist, and with those that do not.
func TestControlGroupModes(t *testing.T) {
	k := groupedKinds[0]
	g, target := k.start(t)
	before, images := memberships(t, target.Pid), t.TempDir()
	target.Dump(tools.Criu, images)
	g.remove()
	restore := func(args ...string) Result {
		return Run(t, append([]string{tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4"}, args...)...)
	}
	for _, mode := range []string{"none", "props"} {
		if r := restore("--manage-cgroups=" + mode); r.Code == 0 || !strings.Contains(r.Stderr, "does not exist") {
			t.Errorf("%s without groups: exit status %d, %s", mode, r.Code, r.Stderr)
		}
	}
	for _, name := range g.names() {
		if g.exists(name) {
			t.Fatalf("%s is there after a refusal", name)
		}
		if err := unix.Mkdirat(int(g.root.Fd()), name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if r := restore("--manage-cgroups=strict"); r.Code == 0 || !strings.Contains(r.Stderr, "exists already") {
		t.Errorf("strict with groups: exit status %d, %s", r.Code, r.Stderr)
	}
	for mode, want := range map[string]string{"none": "max", "soft": "max", "props": k.says, "full": k.says} {
		g.write(g.top, k.property, "max")
		target.Restore(tools.Criu, images, "--manage-cgroups="+mode)
		if got := g.read(g.top, k.property); got != want {
			t.Errorf("%s: %s is %q, want %q", mode, k.property, got, want)
		}
		if d := cmp.Diff(before, memberships(t, target.Pid)); d != "" {
			t.Errorf("%s: %s", mode, d)
		}
		target.Kill()
	}
	target.Restore(tools.Criu, images, "--manage-cgroups=ignore")
	for _, text := range memberships(t, target.Pid) {
		if strings.Contains(text, g.top) {
			t.Errorf("ignore: %s", text)
		}
	}
	target.Go()
}

// TestFailedRestoreRemovesGroups lets a restore fail when all is in place, and looks for what it has made and changed.
func TestFailedRestoreRemovesGroups(t *testing.T) {
	k := groupedKinds[0]
	g, target := k.start(t)
	images := t.TempDir()
	target.Dump(tools.Criu, images)
	script := filepath.Join(images, "fail")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-restore ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	fail := func() {
		t.Helper()
		r := Run(t, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4", "--manage-cgroups=full", "--action-script", script)
		if r.Code == 0 {
			t.Fatal("the restore did not fail")
		}
	}
	g.write(g.top, k.property, "max")
	fail()
	if got := g.read(g.top, k.property); got != "max" {
		t.Errorf("%s of a group that was there is %q", k.property, got)
	}
	g.remove()
	fail()
	if g.exists(g.top) {
		t.Error("the groups are still there")
	}
}

// TestKilledRestoreRemovesGroups kills the tool at random instants: of the groups nothing stays, or the task lives in them.
func TestKilledRestoreRemovesGroups(t *testing.T) {
	g, target := groupedKinds[0].start(t)
	images := t.TempDir()
	target.Dump(tools.Criu, images)
	g.remove()
	rounds := killRounds(8)
	for i := range rounds {
		delay := time.Duration(i) * 60 * time.Millisecond / time.Duration(rounds)
		if killAt(t, delay, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log") {
			target.await("end of the groups", func() bool { reapOrphans(); return target.Alive() || !g.exists(g.top) })
		}
		target.Kill()
		g.remove()
	}
}
