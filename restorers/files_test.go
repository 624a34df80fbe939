package restorers

import (
	"bytes"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	pipepb "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// memorySet is an image set in memory; it is a Source and takes new images.
type memorySet map[string]*bytes.Buffer

func (m memorySet) Open(name string) (io.ReadCloser, error) {
	b := m[name]
	if b == nil {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b.Bytes())), nil
}
func (m memorySet) Exists(name string) (bool, error)       { return m[name] != nil, nil }
func (m memorySet) OpenPages(uint32) (*image.Pages, error) { return nil, fs.ErrNotExist }
func (m memorySet) Parent() (image.Source, error)          { return nil, nil }
func (m memorySet) Close() error                           { return nil }
func (m memorySet) String() string                         { return "memory" }
func (m memorySet) Create(name string) (image.Writer, error) {
	m[name] = &bytes.Buffer{}
	return memoryFile{m[name]}, nil
}

type memoryFile struct{ *bytes.Buffer }

func (memoryFile) Close() error { return nil }

// fdSet makes a set of the tasks 10, 11 ...: the first is the parent of all others. Each has descriptors in the form
// "0=1 5=2c": number, file, close-on-exec.
func fdSet(t testing.TB, files []*fdinfo.FileEntry, tables ...string) *Set {
	t.Helper()
	s := &Set{Source: memorySet{}, ByPID: map[int]*Task{}, Files: map[uint32]*fdinfo.FileEntry{}, Remaps: map[uint32]*remap_file_path.RemapFilePathEntry{}}
	for _, f := range files {
		s.Files[f.GetId()] = f
	}
	for i, text := range tables {
		task := &Task{PID: 10 + i, PGID: 10, SID: 10, Core: emptyCore(), IDs: &criu_core.TaskKobjIdsEntry{FilesId: proto.Uint32(uint32(i + 1))}}
		task.Threads = []*Thread{{TID: task.PID, Core: task.Core}}
		if i > 0 {
			task.PPID, task.Parent = 10, s.Tasks[0]
			s.Tasks[0].Children = append(s.Tasks[0].Children, task)
		}
		for _, d := range strings.Fields(text) {
			number, id, _ := strings.Cut(d, "=")
			id, cloexec := strings.CutSuffix(id, "c")
			e := &fdinfo.FdinfoEntry{Fd: proto.Uint32(atoi(t, number)), Id: proto.Uint32(atoi(t, id)), Flags: proto.Uint32(0)}
			if cloexec {
				e.Flags = proto.Uint32(unix.FD_CLOEXEC)
			}
			e.Type = s.Files[e.GetId()].GetType().Enum()
			task.FDs = append(task.FDs, e)
		}
		s.Tasks, s.ByPID[task.PID] = append(s.Tasks, task), task
	}
	return s
}

func atoi(t testing.TB, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

var testKinds = map[fdinfo.FdTypes]Restorer{
	fdinfo.FdTypes_REG: RegFile{}, fdinfo.FdTypes_PIPE: Pipe{}, fdinfo.FdTypes_EVENTFD: EventFD{}, fdinfo.FdTypes_EVENTPOLL: EventPoll{},
}

func planFDs(t testing.TB, s *Set, opt *FileOptions) (*FilePlan, error) {
	t.Helper()
	tree, err := PlanTree(s, false, sparePID)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range tree.Nodes {
		n.Host = n.ID
	}
	opt.ToolPID, opt.Lender = 2, 2
	return PlanFiles(s, tree, testKinds, NewPaths(s, opt), opt)
}

func entry(id int, typ fdinfo.FdTypes) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Id: proto.Uint32(uint32(id)), Type: typ.Enum()}
}

func null(id, flags, pos int) *fdinfo.FileEntry {
	e := entry(id, fdinfo.FdTypes_REG)
	e.Reg = &regfile.RegFileEntry{Id: e.Id, Name: proto.String("/dev/null"), Flags: proto.Uint32(uint32(flags)), Pos: proto.Uint64(uint64(pos)), Fown: &fown.FownEntry{}}
	return e
}

func pipeFile(id, number, flags int) *fdinfo.FileEntry {
	e := entry(id, fdinfo.FdTypes_PIPE)
	e.Pipe = &pipepb.PipeEntry{Id: e.Id, PipeId: proto.Uint32(uint32(number)), Flags: proto.Uint32(uint32(flags)), Fown: &fown.FownEntry{}}
	return e
}

func eventFile(id int, counter uint64) *fdinfo.FileEntry {
	e := entry(id, fdinfo.FdTypes_EVENTFD)
	e.Efd = &eventfd.EventfdFileEntry{Id: e.Id, Flags: proto.Uint32(unix.O_RDWR), Fown: &fown.FownEntry{}, Counter: proto.Uint64(counter)}
	return e
}

func pollFile(id int, watched ...uint32) *fdinfo.FileEntry {
	e := entry(id, fdinfo.FdTypes_EVENTPOLL)
	e.Epfd = &eventpoll.EventpollFileEntry{Id: e.Id, Flags: proto.Uint32(unix.O_RDWR), Fown: &fown.FownEntry{}}
	for _, fd := range watched {
		e.Epfd.Tfd = append(e.Epfd.Tfd, &eventpoll.EventpollTfdEntry{Id: e.Id, Tfd: proto.Uint32(fd), Events: proto.Uint32(1), Data: proto.Uint64(uint64(fd))})
	}
	return e
}

func owned(e *fdinfo.FileEntry, typ, pid, uid uint32) *fdinfo.FileEntry {
	*fownOf(e) = fown.FownEntry{PidType: &typ, Pid: &pid, Uid: &uid, Euid: &uid, Signum: proto.Uint32(10)}
	return e
}

// programs is what every task does at every level, as text.
func programs(t testing.TB, p *FilePlan) string {
	t.Helper()
	var out strings.Builder
	for lv := Open; lv <= Own; lv++ {
		for _, tab := range p.Tables {
			b := remote.NewBuilder("x")
			if err := p.EmitLevel(lv, tab, b); err != nil {
				t.Fatal(err)
			}
			if b.Len() == 0 {
				continue
			}
			out.WriteString(lv.String() + " " + strconv.Itoa(tab.Node.ID) + "\n")
			lines := strings.Split(b.Program().String(), "\n")
			for _, l := range lines[1 : len(lines)-2] {
				_, text, _ := strings.Cut(strings.TrimSpace(l), "  ")
				text, _ = strings.CutSuffix(text, ", result discarded")
				out.WriteString("\t" + text + "\n")
			}
		}
	}
	return out.String()
}

// TestPlans: who makes what, who fetches it, and that no call is made that the numbers do not ask for.
func TestPlans(t *testing.T) {
	for _, c := range []struct {
		name   string
		files  []*fdinfo.FileEntry
		tables []string
		want   string
	}{
		{"dense", []*fdinfo.FileEntry{null(1, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_TRUNC, 0), eventFile(2, 5)}, []string{"0=1 1=1 2=1c 3=2c"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	openat2(-100, &d0:"/dev/null", &d1:bytes[24], 24) = 0
	dup3(0, 1, 0) must
	dup3(0, 2, 0x80000) must
	eventfd2(5, 0x80000) = 3
`},
		{"at a distance", []*fdinfo.FileEntry{null(1, unix.O_RDONLY, 77)}, []string{"7=1c"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	openat2(-100, &d0:"/dev/null", &d1:bytes[24], 24) = 0
	dup3(0, 7, 0x80000) must
	close(0) must
	lseek(7, 77, 0) must
`},
		{"the ends of a pipe the other way round", []*fdinfo.FileEntry{pipeFile(1, 9, unix.O_RDONLY), pipeFile(2, 9, unix.O_WRONLY)}, []string{"0=2 1=1"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	pipe2(&d0:zero[8], 0) must
	fcntl(1, 1030, 0) = 2
	close(1) must
	dup3(0, 1, 0) must
	close(0) must
	dup3(2, 0, 0) must
	close(2) must
`},
		{"a pipe between two tasks", []*fdinfo.FileEntry{pipeFile(1, 9, unix.O_RDONLY), pipeFile(2, 9, unix.O_WRONLY|unix.O_NONBLOCK)}, []string{"3=1", "3=2"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	pipe2(&d0:zero[8], 0x80800) must
	dup3(0, 3, 0) must
	close(0) must
	fcntl(3, 4, 0) must
open 11
	close_range(0, 0xffffffff, 0) must
fill 11
	pidfd_open(10, 0) = 0
	pidfd_getfd(0, 1, 0) = 1
	dup3(1, 3, 0) must
	close(1) must
	close(0) must
attach 10
	close_range(1, 1, 0) must
`},
		{"a pipe opened once more", []*fdinfo.FileEntry{pipeFile(1, 9, unix.O_RDONLY), pipeFile(2, 9, unix.O_RDWR)}, []string{"0=1 1=2"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	pipe2(&d0:zero[8], 0) must
	dup3(1, 2, 0x80000) must
	close(1) must
pair 10
	openat(-100, &d0:"/proc/10/fd/0", 2, 0) = 1
attach 10
	close_range(2, 2, 0) must
`},
		{"shared in three tasks", []*fdinfo.FileEntry{null(1, unix.O_RDWR, 0), eventFile(2, 1)}, []string{"0=1", "0=1 1=2", "0=1 1=2 2=1"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	openat2(-100, &d0:"/dev/null", &d1:bytes[24], 24) = 0
open 11
	close_range(0, 0xffffffff, 0) must
	eventfd2(1, 0) = 0
	dup3(0, 1, 0) must
	close(0) must
fill 11
	pidfd_open(10, 0) = 0
	dup3(0, 2, 0x80000) must
	close(0) must
	pidfd_getfd(2, 0, 0) = 0
	fcntl(0, 2, 0) must
	close(2) must
fill 12
	close_range(0, 0xffffffff, 0) must
	pidfd_open(10, 0) = 0
	dup3(0, 3, 0x80000) must
	close(0) must
	pidfd_getfd(3, 0, 0) = 0
	fcntl(0, 2, 0) must
	dup3(0, 2, 0) must
	close(3) must
	pidfd_open(11, 0) = 1
	dup3(1, 3, 0x80000) must
	close(1) must
	pidfd_getfd(3, 1, 0) = 1
	fcntl(1, 2, 0) must
	close(3) must
`},
		{"an epoll set goes by the numbers of the task that has them", []*fdinfo.FileEntry{pollFile(1, 1), eventFile(2, 0)}, []string{"0=1c", "0=1c 1=2"}, `
open 11
	close_range(0, 0xffffffff, 0) must
	epoll_create1(0x80000) = 0
	eventfd2(0, 0) = 1
fill 10
	close_range(0, 0xffffffff, 0) must
	pidfd_open(11, 0) = 0
	dup3(0, 1, 0x80000) must
	close(0) must
	pidfd_getfd(1, 0, 0) = 0
	close(1) must
attach 11
	epoll_ctl(0, 1, 1, &d0:bytes[12]) must
`},
		{"owners", []*fdinfo.FileEntry{owned(eventFile(1, 0), ownerPID, 10, 500), owned(eventFile(2, 0), ownerTID, 11, 0)}, []string{"0=1 1=2"}, `
open 10
	close_range(0, 0xffffffff, 0) must
	eventfd2(0, 0) = 0
	eventfd2(0, 0) = 1
attach 10
	fcntl(0, 10, 10) must
	setresuid(500, 500, -1) must
	fcntl(0, 15, &d0:bytes[8]) must
	setresuid(0, 0, -1) must
own 10
	fcntl(1, 10, 10) must
	fcntl(1, 15, &d0:bytes[8]) must
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := planFDs(t, fdSet(t, c.files, c.tables...), &FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), programs(t, p)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRefused: what contradicts itself or cannot be is refused while nothing exists, by name.
func TestRefused(t *testing.T) {
	data := func(entries ...*pipe_data.PipeDataEntry) func(*Set) {
		return func(s *Set) {
			out, err := image.Create(s.Source.(memorySet), image.PipesData, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if err := out.Entry(e); err != nil {
					t.Fatal(err)
				}
				if err := out.Payload(io.LimitReader(zeros{}, int64(e.GetBytes()))); err != nil {
					t.Fatal(err)
				}
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	named := func(name string) func(*Set) { return func(s *Set) { s.Files[1].GetReg().Name = proto.String(name) } }
	for _, c := range []struct {
		name   string
		file   *fdinfo.FileEntry
		change func(*Set)
		want   string
	}{
		{"unknown type", entry(1, fdinfo.FdTypes_TUNF), nil, "of type TUNF, which cannot be restored yet"},
		{"other type", eventFile(1, 0), func(s *Set) { s.Tasks[0].FDs[0].Type = fdinfo.FdTypes_PIPE.Enum() }, "the type of id 1 is PIPE, that of the file EVENTFD"},
		{"no message", entry(1, fdinfo.FdTypes_PIPE), nil, "id 1 has no pipe"},
		{"gone", null(1, 0, 0), named("/dev/no-such-thing"), "file /dev/no-such-thing of the set is not here any more"},
		{"relative", null(1, 0, 0), named("dev/null"), "no absolute path"},
		{"zero byte", null(1, 0, 0), named("/dev/null\x00x"), "no absolute path"},
		{"position", null(1, 0, -7), nil, "is no position in a file"},
		{"kind", null(1, 0, 0), func(s *Set) { s.Files[1].GetReg().Mode = proto.Uint32(unix.S_IFREG | 0o666) }, "it was a regular file, it is a character device"},
		{"mode", null(1, 0, 0), func(s *Set) { s.Files[1].GetReg().Mode = proto.Uint32(unix.S_IFCHR | 0o600) }, "its mode was 0600, it is 0666"},
		{"size", null(1, 0, 0), func(s *Set) { s.Files[1].GetReg().Size = proto.Uint64(9) }, "its size was 9, it is 0"},
		{"outside", null(1, 0, 0), func(s *Set) {
			s.Files[1].GetReg().Name, s.Files[1].GetReg().Ext = proto.String("file[1:2]"), proto.Bool(true)
		}, "hand it in with --inherit-fd fd[N]:file[1:2]"},
		{"owner", owned(eventFile(1, 0), 3, 1, 0), nil, "is no owner of a file"},
		{"ghost", null(1, 0, 0), func(s *Set) {
			s.Remaps[1] = &remap_file_path.RemapFilePathEntry{RemapId: proto.Uint32(3), RemapType: remap_file_path.RemapType_GHOST.Enum()}
		}, "deleted file /dev/null: "},
		{"link", null(1, 0, 0), func(s *Set) {
			s.Remaps[1] = &remap_file_path.RemapFilePathEntry{RemapId: proto.Uint32(3), RemapType: remap_file_path.RemapType_LINKED.Enum()}
		}, "remap_id 3 is no file with a path"},
		{"remap", null(1, 0, 0), func(s *Set) {
			s.Remaps[1] = &remap_file_path.RemapFilePathEntry{RemapId: proto.Uint32(3), RemapType: remap_file_path.RemapType(9).Enum()}
		}, "remap_type 9 is not known"},
		{"too much in a pipe", pipeFile(1, 9, 0), data(&pipe_data.PipeDataEntry{PipeId: proto.Uint32(9), Bytes: proto.Uint32(70000)}), "70000 bytes do not fit into a pipe of 65536"},
		{"a pipe twice", pipeFile(1, 9, 0), data(&pipe_data.PipeDataEntry{PipeId: proto.Uint32(8), Bytes: proto.Uint32(1)},
			&pipe_data.PipeDataEntry{PipeId: proto.Uint32(8), Bytes: proto.Uint32(1)}), "pipe_id 8 is there twice"},
		{"epoll", pollFile(1, 8), nil, "watches descriptor 8, which no task that has the set has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fdSet(t, []*fdinfo.FileEntry{c.file}, "0=1")
			if c.change != nil {
				c.change(s)
			}
			_, err := planFDs(t, s, &FileOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, where %q was expected", err, c.want)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLimits: numbers beyond what the tool may have are refused, or the limit is raised first.
func TestLimits(t *testing.T) {
	set := func() *Set { return fdSet(t, []*fdinfo.FileEntry{eventFile(1, 0)}, "5000=1") }
	for _, c := range []struct {
		limits    Limits
		want, err string
	}{
		{Limits{Soft: 1024, Hard: 1024, Max: 1 << 20}, "", "CAP_SYS_RESOURCE is missing"},
		{Limits{Soft: 1024, Hard: 1024, Max: 4096, MayRaise: true}, "", "need fs.nr_open to be at least"},
		{Limits{Soft: 1024, Hard: 1024, Max: 1 << 20, MayRaise: true}, "prlimit64", ""},
		{Limits{Soft: 8192, Hard: 8192, Max: 1 << 20}, "", ""},
	} {
		p, err := planFDs(t, set(), &FileOptions{Limits: c.limits})
		if err != nil {
			if c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v", c.limits, err)
			}
			continue
		}
		if text := programs(t, p); c.err != "" || strings.Contains(text, "prlimit64") != (c.want != "") {
			t.Errorf("%+v: %s", c.limits, text)
		}
	}
}

// TestInherit: what the user hands in takes the place of what the set names.
func TestInherit(t *testing.T) {
	ext := null(3, unix.O_RDONLY, 0)
	ext.Reg.Name, ext.Reg.Ext = proto.String("file[1:2]"), proto.Bool(true)
	s := fdSet(t, []*fdinfo.FileEntry{pipeFile(1, 9, unix.O_WRONLY), null(2, unix.O_RDWR, 5), ext}, "0=1 1=2 2=3")
	p, err := planFDs(t, s, &FileOptions{Inherit: []options.InheritFD{{FD: 7, Key: "pipe:[9]"}, {FD: 8, Key: "dev/null"}, {FD: 9, Key: "file[1:2]"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `open 10
	close_range(0, 0xffffffff, 0) must
	openat(-100, &d0:"/proc/2/fd/7", 1, 0) = 0
	pidfd_open(2, 0) = 1
	dup3(1, 3, 0x80000) must
	close(1) must
	pidfd_getfd(3, 8, 0) = 1
	fcntl(1, 2, 0) must
	openat(-100, &d1:"/proc/2/fd/9", 256, 0) = 2
attach 10
	close_range(3, 3, 0) must
`
	if diff := cmp.Diff(want, programs(t, p)); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkPlan plans and writes the programs of one task with 10,000 descriptors.
func BenchmarkPlan(b *testing.B) {
	var files []*fdinfo.FileEntry
	var table strings.Builder
	for i := 1; i <= 10000; i++ {
		files = append(files, null(i, unix.O_RDONLY, i))
		table.WriteString(strconv.Itoa(i-1) + "=" + strconv.Itoa(i) + " ")
	}
	s := fdSet(b, files, table.String())
	b.ReportAllocs()
	for b.Loop() {
		p, err := planFDs(b, s, &FileOptions{})
		if err != nil {
			b.Fatal(err)
		}
		bld := remote.NewBuilder("x")
		if err := p.EmitLevel(Open, p.Tables[0], bld); err != nil {
			b.Fatal(err)
		}
		bld.Program()
	}
}
