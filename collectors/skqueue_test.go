package collectors

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPeeker looks into queues and finds every message with its boundaries and descriptors, and leaves the queue as it
// was: it looks twice, and then reads what is there. Messages are written as text; each + is a descriptor.
func TestPeeker(t *testing.T) {
	for _, c := range []struct {
		typ  int
		sent string
		want string // what is peeked, if it is not what was sent
	}{
		{unix.SOCK_STREAM, "one two", "onetwo"},
		{unix.SOCK_STREAM, "one +A two", ""},
		{unix.SOCK_STREAM, "one two +A +BC +D three four", "one two +A +BC +D threefour"},
		{unix.SOCK_STREAM, "+A", ""},
		{unix.SOCK_STREAM, "+++A +B", ""},
		{unix.SOCK_STREAM, strings.Repeat("x", 100000) + " +A", ""},
		{unix.SOCK_DGRAM, "one +two three", ""},
		{unix.SOCK_DGRAM, "small " + strings.Repeat("large", 5000) + " small", ""},
		{unix.SOCK_SEQPACKET, "one ++two +three", ""},
	} {
		t.Run(fmt.Sprintf("%d %.20s", c.typ, c.sent), func(t *testing.T) {
			if c.want == "" {
				c.want = c.sent
			}
			pair := socketPair(t, c.typ)
			for _, text := range strings.Fields(c.sent) {
				sendText(t, pair[0], text)
			}
			before := openDescriptors(t)
			for range 2 {
				if got := peekAll(t, pair[1], c.typ); got != c.want && pieces(got) != pieces(c.want) {
					t.Errorf("peeked %.200q, want %.200q", got, c.want)
				}
			}
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors are open where %d were", after, before)
			}
			if off, err := unix.GetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_PEEK_OFF); err != nil || off != -1 {
				t.Errorf("the peek offset is %d, %v", off, err)
			}
			buf := make([]byte, 200000)
			n, err := unix.Read(pair[1], buf)
			if err != nil || !strings.HasPrefix(strings.NewReplacer(" ", "", "+", "").Replace(c.sent), string(buf[:n])) {
				t.Errorf("read %.20q, %v", buf[:n], err)
			}
		})
	}
}

// pieces is text without the boundaries that a stream need not keep: those between bytes without descriptors.
func pieces(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, " +", "\n+"), " ", "") }

func peekAll(t *testing.T, fd, typ int) string {
	t.Helper()
	p, err := newPeeker(fd, typ)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	p.warn = func() error { return nil }
	p.emit = func(m peeked) error {
		closeAll(m.fds)
		got = append(got, strings.Repeat("+", len(m.fds))+string(m.data))
		return nil
	}
	if typ == unix.SOCK_STREAM {
		size, ierr := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if ierr != nil {
			t.Fatal(ierr)
		}
		err = p.stream(size)
	} else {
		err = p.messages(0, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(got, " ")
}

func socketPair(t *testing.T, typ int) [2]int {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(pair[:]) })
	return pair
}

// sendText sends a word, and standard output as often as there is a + before it.
func sendText(t *testing.T, fd int, text string) {
	t.Helper()
	data := strings.TrimLeft(text, "+")
	var control []byte
	if n := len(text) - len(data); n > 0 {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = 1
		}
		control = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(fd, []byte(data), control, nil, 0); err != nil {
		t.Fatal(err)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestRelativeTo(t *testing.T) {
	for _, c := range []struct {
		full, name, dir string
		ok              bool
	}{
		{"/tmp/x/sock", "sock", "/tmp/x", true},
		{"/tmp/x/sock", "x/sock", "/tmp", true},
		{"/tmp/x/sock", "./x//sock", "/tmp", true},
		{"/sock", "sock", "/", true},
		{"/tmp/x/sock", "../x/sock", "", false},
		{"/tmp/renamed", "sock", "", false},
		{"/tmp/xsock", "sock", "", false},
	} {
		if dir, ok := relativeTo(c.full, c.name); ok != c.ok || ok && dir != c.dir {
			t.Errorf("%s from %s: %q, %v", c.name, c.full, dir, ok)
		}
	}
}
