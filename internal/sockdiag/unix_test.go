package sockdiag

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestUnixSockets finds sockets of the test's own, in states that only the kernel's list tells.
func TestUnixSockets(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	server, client := socket(t), socket(t)
	const name = "\x00cryo sockdiag test"
	if err := unix.Bind(server, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(server, 7); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pair[0], []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(pair[0], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	list, err := UnixSockets(int(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	a, b, s := find(t, list, pair[0]), find(t, list, pair[1]), find(t, list, server)
	if a.Peer != b.Ino || b.Peer != a.Ino || a.State != Established || b.RQueue != 5 || a.Shutdown != 2 || b.Shutdown != 1 {
		t.Errorf("pair: %+v %+v", a, b)
	}
	if s.State != Listen || s.WQueue != 7 || s.RQueue != 1 || string(s.Name) != name || !slices.Equal(s.Icons, []uint32{find(t, list, client).Ino}) {
		t.Errorf("listener: %+v", s)
	}
	one, err := UnixSocket(int(ns.Fd()), s.Ino)
	if diff := cmp.Diff(s, one); err != nil || diff != "" {
		t.Errorf("looked up: %v\n%s", err, diff)
	}
	if _, err := UnixSocket(int(ns.Fd()), ^uint32(0)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("one that is not there: %v", err)
	}
}

func socket(t *testing.T) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func find(t *testing.T, list []Unix, fd int) Unix {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(u Unix) bool { return uint64(u.Ino) == st.Ino })
	if i < 0 {
		t.Fatalf("socket %d is not in the list", st.Ino)
	}
	return list[i]
}
