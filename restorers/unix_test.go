package restorers

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// unixEntry is a socket with inode number 100+id.
func unixEntry(id, typ, state, peer uint32, change ...func(*sk_unix.UnixSkEntry)) *fdinfo.FileEntry {
	zero, zero64 := proto.Uint32(0), proto.Uint64(0)
	e := &sk_unix.UnixSkEntry{
		Id: proto.Uint32(id), Ino: proto.Uint32(100 + id), Type: proto.Uint32(typ), State: proto.Uint32(state), Flags: proto.Uint32(unix.O_RDWR),
		Uflags: zero, Backlog: zero, Peer: proto.Uint32(peer), Name: []byte{},
		Opts: &sk_opts.SkOptsEntry{SoSndbuf: proto.Uint32(212992), SoRcvbuf: proto.Uint32(212992),
			SoSndTmoSec: zero64, SoSndTmoUsec: zero64, SoRcvTmoSec: zero64, SoRcvTmoUsec: zero64},
	}
	for _, c := range change {
		c(e)
	}
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_UNIXSK.Enum(), Id: proto.Uint32(id), Usk: e}
}

func withName(name string) func(*sk_unix.UnixSkEntry) {
	return func(e *sk_unix.UnixSkEntry) { e.Name = []byte(name) }
}

func planUnix(t *testing.T, files ...*fdinfo.FileEntry) error {
	t.Helper()
	var table []string
	for i, f := range files {
		if f.GetUsk().GetUflags()&unixExternal == 0 {
			table = append(table, fmt.Sprintf("%d=%d", i, f.GetId()))
		}
	}
	s := fdSet(t, files, strings.Join(table, " "))
	tree, err := PlanTree(s, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	opt := &FileOptions{}
	_, err = PlanFiles(s, tree, map[fdinfo.FdTypes]Restorer{fdinfo.FdTypes_UNIXSK: Unix{}}, NewPaths(s, opt), opt)
	return err
}

// TestUnixRefusals plans sockets that no kernel has or that cannot be made, and some that can.
func TestUnixRefusals(t *testing.T) {
	const stream, dgram = unix.SOCK_STREAM, unix.SOCK_DGRAM
	change := func(f func(*sk_unix.UnixSkEntry)) []*fdinfo.FileEntry {
		return []*fdinfo.FileEntry{unixEntry(1, stream, unixClosed, 0, f)}
	}
	for _, c := range []struct {
		name  string
		files []*fdinfo.FileEntry
		want  string // part of the error; "": none
	}{
		{"alone", change(func(*sk_unix.UnixSkEntry) {}), ""},
		{"pair", []*fdinfo.FileEntry{unixEntry(1, stream, unixEstablished, 102), unixEntry(2, stream, unixEstablished, 101)}, ""},
		{"to itself", []*fdinfo.FileEntry{unixEntry(1, dgram, unixClosed, 101, withName("\x00a"))}, ""},
		{"waiting", []*fdinfo.FileEntry{unixEntry(1, stream, unixListen, 0, withName("\x00a")), unixEntry(2, stream, unixEstablished, 101)}, ""},
		{"no such type", change(func(e *sk_unix.UnixSkEntry) { e.Type = proto.Uint32(9) }), "type 9"},
		{"no such state", change(func(e *sk_unix.UnixSkEntry) { e.State = proto.Uint32(3) }), "state 3"},
		{"no such shutdown", change(func(e *sk_unix.UnixSkEntry) { e.Shutdown = sk_opts.SkShutdown(7).Enum() }), "shutdown 7"},
		{"long name", change(withName(strings.Repeat("x", 200))), "200 bytes"},
		{"deleted without a path", change(func(e *sk_unix.UnixSkEntry) { e.Deleted = proto.Bool(true) }), "no path"},
		{"relative directory", change(func(e *sk_unix.UnixSkEntry) { e.NameDir = proto.String("x") }), "name_dir"},
		{"backlog", change(func(e *sk_unix.UnixSkEntry) { *e.State, e.Backlog = unixListen, proto.Uint32(1<<31) }), "backlog"},
		{"another id", change(func(e *sk_unix.UnixSkEntry) { e.Id = proto.Uint32(5) }), "usk has id 5"},
		{"of a plugin", change(func(e *sk_unix.UnixSkEntry) { e.Uflags = proto.Uint32(unixCallback) }), "--inherit-fd fd[N]:socket:[101]"},
		{"no options", change(func(e *sk_unix.UnixSkEntry) { e.Opts = nil }), "no socket options"},
		{"peer not there", []*fdinfo.FileEntry{unixEntry(1, stream, unixEstablished, 77)}, "peer 77"},
		{"peer of another type", []*fdinfo.FileEntry{unixEntry(1, stream, unixEstablished, 102), unixEntry(2, dgram, unixEstablished, 101)}, "another type"},
		{"peer without a name", []*fdinfo.FileEntry{unixEntry(1, dgram, unixEstablished, 102), unixEntry(2, dgram, unixClosed, 0)}, "connected to it nor"},
		{"the same inode", []*fdinfo.FileEntry{unixEntry(1, stream, unixClosed, 0),
			unixEntry(2, stream, unixClosed, 0, func(e *sk_unix.UnixSkEntry) { *e.Ino = 101 })}, "ino 101 is there twice"},
		{"outside", []*fdinfo.FileEntry{unixEntry(1, dgram, unixEstablished, 102),
			unixEntry(2, dgram, unixListen, 0, withName("/x"), func(e *sk_unix.UnixSkEntry) { *e.Uflags = unixExternal })}, "--ext-unix-sk"},
		{"taken name", change(withName("/dev/null\x00")), "a character device now"},
		{"no directory", change(withName("/nonexistent/x\x00")), "its directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := planUnix(t, c.files...)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestHiddenName binds to a path whose directories are not there, and nothing comes to be.
func TestHiddenName(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range []string{"/nonexistent/directory/socket", "relative/socket"} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		u := &unixFile{UnixSkEntry: &sk_unix.UnixSkEntry{Name: []byte(name), NameDir: proto.String("/nonexistent/dir"), Deleted: proto.Bool(true)}}
		if err := onOwnThread(func(w *binder) error { return w.hidden(fd, u) }); err != nil {
			t.Fatal(err)
		}
		a, err := unix.Getsockname(fd)
		if err != nil || a.(*unix.SockaddrUnix).Name != name {
			t.Errorf("its name is %+v, %v", a, err)
		}
		if _, err := os.Lstat("/nonexistent"); err == nil {
			t.Error("a directory was made")
		}
	}
}

// TestSocketOptions sets options in a real task, and asks them back.
func TestSocketOptions(t *testing.T) {
	tasks := spawnTasks(t, 1)
	o := &sk_opts.SkOptsEntry{
		SoSndbuf: proto.Uint32(20000), SoRcvbuf: proto.Uint32(30000), SoBufLock: proto.Uint32(1), SoPriority: proto.Uint32(4),
		SoRcvlowat: proto.Uint32(9), SoPasscred: proto.Bool(true), SoBroadcast: proto.Bool(true), SoLinger: proto.Uint32(5),
		SoSndTmoSec: proto.Uint64(3), SoSndTmoUsec: proto.Uint64(500000), SoRcvTmoSec: proto.Uint64(0), SoRcvTmoUsec: proto.Uint64(0),
		SoFilter: []uint64{0x06<<48 | 0xffff}, // return 65535
	}
	if err := checkSocketOptions(o); err != nil {
		t.Fatal(err)
	}
	b := remote.NewBuilder("options")
	fd := b.Call(unix.SYS_SOCKET, remote.Imm(unix.AF_UNIX), remote.Imm(unix.SOCK_DGRAM), remote.Imm(0))
	b.Call(unix.SYS_DUP3, fd, remote.Imm(77), remote.Imm(0)).Expect(77)
	emitSocketOptions(b, 77, o)
	prog := b.Program()
	if err := tasks.tracer.Do(func() error { _, err := tasks.sessions[0].Run(prog); return err }); err != nil {
		t.Fatalf("%v\n%s", err, prog)
	}
	g := &getter{pidfds: map[*Table]int{}, pid: func(*Table) int { return tasks.pid(0) }}
	defer g.close()
	own, err := g.get(&Table{}, 77)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	for option, want := range map[int]int{unix.SO_SNDBUF: 20000, unix.SO_RCVBUF: 30000, unix.SO_BUF_LOCK: 1, unix.SO_PRIORITY: 4,
		unix.SO_RCVLOWAT: 9, unix.SO_PASSCRED: 1, unix.SO_BROADCAST: 1, unix.SO_KEEPALIVE: 0} {
		if got, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, option); err != nil || got != want {
			t.Errorf("option %d: %d, %v, want %d", option, got, err, want)
		}
	}
	if tv, err := unix.GetsockoptTimeval(own, unix.SOL_SOCKET, unix.SO_SNDTIMEO); err != nil || tv.Sec != 3 || tv.Usec != 500000 {
		t.Errorf("timeout: %+v, %v", tv, err)
	}
	if l, err := unix.GetsockoptLinger(own, unix.SOL_SOCKET, unix.SO_LINGER); err != nil || l.Onoff != 1 || l.Linger != 5 {
		t.Errorf("linger: %+v, %v", l, err)
	}
}
