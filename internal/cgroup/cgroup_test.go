package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseMembers(t *testing.T) {
	got, err := ParseMembers("4:memory:/a:b\n3:name=with:colon:/d:/e\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/y\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []Member{{"", "/y"}, {"cpu,cpuacct", "/"}, {"memory", "/a:b"}, {"name=systemd", "/x"}, {"name=with:colon", "/d:/e"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"memory\n", "1:cpu\n", "1:cpu:relative\n"} {
		if _, err := ParseMembers(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestSame(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "", true}, {"", "cpu", false}, {"cpu", "cpu,cpuacct", true}, {"cpuacct,cpu", "cpu,cpuacct", true},
		{"cpu", "cpuset", false}, {"name=a", "name=a", true}, {"name=a", "name=ab", false},
	} {
		if got := Same(c.a, c.b); got != c.want {
			t.Errorf("Same(%q, %q) is %v", c.a, c.b, got)
		}
	}
}

func TestYardName(t *testing.T) {
	for in, want := range map[string]string{"": "unified", "cpu,cpuacct": "cpu,cpuacct", "name=systemd": "systemd", "cpu,name=x": "cpu,x"} {
		if got := yardName(in); got != want {
			t.Errorf("yardName(%q) is %q", in, got)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{"": "", "/": "", "/a/b/": "a/b", "a.slice": "a.slice", "..a": "..a"} {
		if got, err := Clean(in); err != nil || got != want {
			t.Errorf("Clean(%q) is %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"..", "a/../../b", "a//b", ".", "a/./b", "../x", "a\x00b"} {
		if got, err := Clean(bad); err == nil {
			t.Errorf("Clean(%q) is %q", bad, got)
		}
	}
}

func TestProperties(t *testing.T) {
	p := DefaultProperties()
	err := p.Add(`"cpu":
 - "strategy": "replace"
 - "properties": ["cpu.shares", "cpu.cfs_period_us"]
"pids":
 - "strategy": "merge"
 - "properties": [ "pids.x" ]
"new":
 - "strategy": "merge"
 - "properties": []
`)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"cpu.shares", "cpu.cfs_period_us", "pids.max", "pids.x", "cgroup.clone_children", "notify_on_release",
		"cgroup.procs", "tasks"}, p.Of([]string{"cpu", "pids", "new"})); d != "" {
		t.Error(d)
	}
	if got := p.Of([]string{""}); got[0] != "cgroup.subtree_control" {
		t.Errorf("version 2 has %q", got)
	}
	if len(defaults["pids"]) != 1 {
		t.Error("the defaults have changed")
	}
	for spec, want := range map[string]string{
		`cpu:`:                             "line 1: the name of a controller, in quotes expected",
		"\"cpu\":\n - \"x\"":               `line 2: "strategy" expected`,
		"\"cpu\":\n - \"strategy\": \"a\"": "neither merge nor replace",
		"\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"a\" \"b\"]": `"," or "]" expected`,
		"\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"a\"":        "at the end",
		"\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"../a\"]":    "no property",
	} {
		if err := p.Add(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", spec, err, want)
		}
	}
}

// testGroup makes a group of a hierarchy and removes it in the end.
func testGroup(t *testing.T, hierarchy string) *os.File {
	t.Helper()
	var h Hierarchies
	t.Cleanup(h.Close)
	root, err := h.Root(hierarchy)
	if err != nil {
		t.Skipf("no hierarchy %q: %v", hierarchy, err)
	}
	name := fmt.Sprintf("cryo-test-%d", os.Getpid())
	err = unix.Mkdirat(int(root.Fd()), name, 0o755)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
		t.Skipf("may not make control groups: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(context.Background(), root, name); err != nil {
			t.Error(err)
		}
	})
	dir, err := Open(root, name, unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// TestNamedHierarchy uses a hierarchy that is mounted nowhere.
func TestNamedHierarchy(t *testing.T) {
	dir := testGroup(t, fmt.Sprintf("name=cryo-test-%d", os.Getpid()))
	if err := WriteProperty(dir, "notify_on_release", "1"); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadProperty(dir, "notify_on_release"); err != nil || got != "1" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Open(dir, "../..", unix.O_DIRECTORY); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a way out: %v", err)
	}
}

func TestUnified(t *testing.T) {
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	dir := testGroup(t, "")
	if got, err := ReadProperty(dir, "cgroup.type"); err != nil || got != "domain" {
		t.Errorf("%q, %v", got, err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(cgroupMounts(before), cgroupMounts(after)); d != "" {
		t.Errorf("mounts have changed: %s", d)
	}
}

func cgroupMounts(mountinfo []byte) (lines []string) {
	for line := range strings.Lines(string(mountinfo)) {
		if strings.Contains(line, " - cgroup2 ") {
			lines = append(lines, line)
		}
	}
	return lines
}
