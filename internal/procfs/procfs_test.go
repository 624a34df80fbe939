package procfs

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 42 43 34816 -1 4194304 101 0 0 0 0 0 0 0 20 -5 3 0 65866 3133440 408 18446744073709551615 4198400 4235000 140726792533184 " +
		"0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 6000 7000 8000 9000 9100 9200 9300 256\n"
	want := &Stat{
		Pid: 7, State: 'S', PPid: 1, PGrp: 42, Session: 43, TTY: 34816, TTYGroup: -1, Flags: 4194304, Nice: -5, Threads: 3, StartTime: 65866,
		StartCode: 4198400, EndCode: 4235000, StartStack: 140726792533184, StartData: 6000, EndData: 7000, StartBrk: 8000,
		ArgStart: 9000, ArgEnd: 9100, EnvStart: 9200, EnvEnd: 9300, ExitCode: 256,
	}
	for _, comm := range []string{"cat", "a b", "x) S 1 (y", "(", ")", ""} {
		got, err := ParseStat("stat", []byte("7 ("+comm+")"+rest))
		if err != nil {
			t.Errorf("comm %q: %v", comm, err)
			continue
		}
		want.Comm = comm
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("comm %q: %s", comm, d)
		}
	}
	for _, bad := range []string{"", "7 (cat", "7 (cat) S 1 2", "x (cat)" + rest, "7 (cat)" + strings.Replace(rest, "42", "4x", 1)} {
		if _, err := ParseStat("stat", []byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

const statusText = `Name:	a:b
Umask:	0022
State:	t (tracing stop)
Tgid:	25473
PPid:	25468
TracerPid:	9
Uid:	0	1	2	3
Gid:	4	5	6	7
Groups:	4 24 1000 
NStgid:	25473	12
NSpid:	25474	13
NSpgid:	25468	1
NSsid:	22573	0
VmLck:	      16 kB
THP_enabled:	0
Threads:	2
SigPnd:	0000000000000001
ShdPnd:	0000000000000200
SigBlk:	fffffffe7ffbfeff
SigIgn:	0000000000001000
SigCgt:	0000000180014a07
CapInh:	0000000000000000
CapPrm:	000001fffeffffff
CapEff:	000001fffefffffe
CapBnd:	000001ffffffffff
CapAmb:	0000000000000400
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	3
`

func TestParseStatus(t *testing.T) {
	got, err := ParseStatus("status", []byte(statusText))
	if err != nil {
		t.Fatal(err)
	}
	want := &Status{
		Umask: 0o22, State: 't', PPid: 25468, TracerPid: 9, Uid: [4]uint32{0, 1, 2, 3}, Gid: [4]uint32{4, 5, 6, 7},
		Groups: []uint32{4, 24, 1000}, NStgid: []int{25473, 12}, NSpid: []int{25474, 13}, NSpgid: []int{25468, 1}, NSsid: []int{22573, 0},
		SigPnd: 1, ShdPnd: 0x200, SigBlk: 0xfffffffe7ffbfeff, SigIgn: 0x1000, SigCgt: 0x180014a07,
		CapPrm: 0x1fffeffffff, CapEff: 0x1fffefffffe, CapBnd: 0x1ffffffffff, CapAmb: 0x400,
		NoNewPrivs: true, Seccomp: 2, SeccompFilters: 3, Threads: 2, THPDisabled: true, VmLck: 16,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	old, err := ParseStatus("status", []byte("Name:\tx\nPPid:\t1\n"))
	if err != nil || old.Umask != -1 || old.SeccompFilters != -1 {
		t.Errorf("an old kernel's: %+v, %v", old, err)
	}
	if _, err := ParseStatus("status", []byte("Uid:\t0 1\n")); err == nil {
		t.Error("two uids are accepted")
	}
}

func TestParseFDInfo(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       *FDInfo
	}{
		{"a file", "pos:\t6\nflags:\t02100002\nmnt_id:\t24\nino:\t77\n", &FDInfo{Pos: 6, Flags: 0o2100002, MntID: 24, Ino: 77}},
		{"an old kernel's", "pos:\t0\nflags:\t00\n", &FDInfo{MntID: -1}},
		{"an eventfd", "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\neventfd-count:                3\neventfd-id: 2\n",
			&FDInfo{Flags: 2, MntID: 17, Ino: 1038, Rest: []byte("eventfd-count:                3\neventfd-id: 2\n")}},
		{"nothing", "", nil},
		{"no number", "pos:\tx\n", nil},
	} {
		got, err := ParseFDInfo("fdinfo/3", []byte(test.text))
		if (err == nil) != (test.want != nil) {
			t.Errorf("%s: %v", test.name, err)
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("%s: %s", test.name, d)
		}
	}
}

func TestFDInfoFields(t *testing.T) {
	info := &FDInfo{Rest: []byte("eventfd-count:                3\ntfd:        5 events:       1f\ntfd:        3 events: 19\n")}
	if got := info.Field("eventfd-count"); got != "3" {
		t.Errorf("count %q", got)
	}
	if got := slices.Collect(info.Lines("tfd")); !slices.Equal(got, []string{"5 events:       1f", "3 events: 19"}) {
		t.Errorf("lines %q", got)
	}
	if got := info.Field("none"); got != "" {
		t.Errorf("none %q", got)
	}
}

func TestParseLimits(t *testing.T) {
	b, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLimits("limits", b)
	if err != nil {
		t.Fatal(err)
	}
	if got[7].Cur == 0 { // open files
		t.Errorf("%+v", got)
	}
	text := strings.Replace(string(b), "Max stack size", "Max stake size", 1)
	if _, err := ParseLimits("limits", []byte(text)); err == nil {
		t.Error("a missing limit is not noticed")
	}
}

func TestParseTimers(t *testing.T) {
	const text = "ID: 0\nsignal: 14/00007ffd12345678\nnotify: signal/pid.12\nClockID: 0\nID: 7\nsignal: 34/0000000000000001\nnotify: thread/tid.99\nClockID: -2\n" +
		"ID: 8\nsignal: 0/0000000000000000\nnotify: none/pid.12\nClockID: 1\n"
	got, err := ParseTimers("timers", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Timer{
		{ID: 0, Signal: 14, Value: 0x7ffd12345678, Notify: 0, Tid: 12},
		{ID: 7, Signal: 34, Value: 1, Notify: 2, Thread: true, Tid: 99, Clock: -2},
		{ID: 8, Notify: 1, Tid: 12, Clock: 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"ID: x\n", "ID: 1\nsignal: 1/0\nnotify: signal\nClockID: 0\n", "ID: 1\n"} {
		if _, err := ParseTimers("timers", []byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseMaps(t *testing.T) {
	const text = "00400000-00401000 r--p 00001000 fe:00 12345                             /a file with spaces (deleted)\n" +
		"7ffd1000-7ffd2000 rw-p 00000000 00:00 0                          [stack]\n" +
		"7f0000000000-7f0000001000 rw-s 00000000 00:01 7 \n"
	got, err := ParseMaps("maps", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mapping{
		{Start: 0x400000, End: 0x401000, Perms: "r--p", Offset: 0x1000, Major: 0xfe, Ino: 12345, Name: "/a file with spaces (deleted)"},
		{Start: 0x7ffd1000, End: 0x7ffd2000, Perms: "rw-p", Name: "[stack]"},
		{Start: 0x7f0000000000, End: 0x7f0000001000, Perms: "rw-s", Minor: 1, Ino: 7},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"zz-1 r--p 0 0:0 0\n", "2000-1000 r--p 0 0:0 0\n", "1000-2000 rw 0 0:0 0\n", "1000\n"} {
		if _, err := ParseMaps("maps", []byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestTask reads a live process: the parsers take what this kernel prints.
func TestTask(t *testing.T) {
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	d, err := OpenTask(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	tids, err := d.Threads()
	if err != nil || !slices.Equal(tids, []int{c.Process.Pid}) {
		t.Errorf("threads %v: %v", tids, err)
	}
	if fds, err := d.FDs(); err != nil || !slices.Contains(fds, 0) {
		t.Errorf("descriptors %v: %v", fds, err)
	}
	if _, err := d.FDInfo(0); err != nil {
		t.Error(err)
	}
	if _, err := d.Status(); err != nil {
		t.Error(err)
	}
	if maps, err := d.Maps(); err != nil || len(maps) == 0 {
		t.Errorf("%d mappings: %v", len(maps), err)
	}
	self, err := OpenTask(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	tids, err = self.Threads()
	if err != nil {
		t.Fatal(err)
	}
	if children, err := self.Children(tids); err != nil || !slices.Contains(children, c.Process.Pid) {
		t.Errorf("children %v: %v", children, err)
	}
	if _, err := OpenTask(1 << 23); !os.IsNotExist(err) {
		t.Errorf("a task that cannot be: %v", err)
	}
}
