package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// server is a workload with a client outside of its tree: the test.
type server struct {
	*Target
	conn net.Conn
}

func startServer(t *testing.T, address string) *server {
	t.Helper()
	target := Start(t, t.TempDir(), tools.Workload(t, "tcpserver"), address)
	target.AwaitFile("port")
	host := address
	if host == "::" {
		host = "127.0.0.1" // the server sees it as an IPv6 address
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, target.read("port")), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	target.AwaitFile("ready")
	s := &server{target, conn}
	t.Cleanup(s.unlock)
	return s
}

// unlock removes what is left when a test failed between a dump and its restore.
func (s *server) unlock() {
	c, err := nftables.New()
	if err != nil {
		return
	}
	for _, name := range s.locks() {
		c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	}
	if err := c.Flush(); err != nil {
		s.t.Log("remove a lock: ", err)
	}
}

// echo sends data and wants them back.
func (s *server) echo() {
	s.t.Helper()
	data := make([]byte, 20_000)
	rand.Read(data)
	s.send(data)
	s.expect(data)
}

func (s *server) send(data []byte) {
	s.t.Helper()
	s.conn.SetDeadline(time.Now().Add(patience))
	if _, err := s.conn.Write(data); err != nil {
		s.t.Fatalf("write to the server: %v", err)
	}
}

func (s *server) expect(data []byte) {
	s.t.Helper()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(s.conn, got); err != nil {
		s.t.Fatalf("the server's echo: %v; alive %v, verdict %q, stderr %q", err, s.Alive(), s.read("verdict"), s.read("stderr"))
	}
	if !bytes.Equal(got, data) {
		s.t.Fatal("the echo is not what was sent")
	}
}

// end closes the client's side and wants the server's verdict.
func (s *server) end() {
	s.t.Helper()
	s.conn.Close()
	s.Go()
}

// locks lists the tables of packet filters that hold packets of the server's connection, or of none. What others do on
// this machine is none of the test's business.
func (s *server) locks() (names []string) {
	s.t.Helper()
	c, err := nftables.New()
	if err != nil {
		s.t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		s.t.Fatal(err)
	}
	port := binary.BigEndian.AppendUint16(nil, uint16(s.conn.LocalAddr().(*net.TCPAddr).Port))
	for _, table := range tables {
		if !strings.HasPrefix(table.Name, "CRIU-") {
			continue
		}
		if strings.HasSuffix(table.Name, "-doors") {
			if s.closes(c, table) {
				names = append(names, table.Name)
			}
			continue
		}
		sets, _ := c.GetSets(table) // one that has just gone has none
		foreign := false
		for _, set := range sets {
			elements, _ := c.GetSetElements(set)
			for _, e := range elements {
				if bytes.Contains(e.Key, port) {
					names = append(names, table.Name)
				}
				foreign = true
			}
		}
		if len(sets) > 0 && !foreign {
			names = append(names, table.Name)
		}
	}
	return names
}

// closes says whether a table holds new connections to the server back.
func (s *server) closes(c *nftables.Conn, table *nftables.Table) bool {
	port := binary.BigEndian.AppendUint16(nil, uint16(s.conn.RemoteAddr().(*net.TCPAddr).Port))
	rules, _ := c.GetRules(table, &nftables.Chain{Name: "input", Table: table})
	for _, r := range rules {
		for _, e := range r.Exprs {
			if cmp, is := e.(*expr.Cmp); is && bytes.Equal(cmp.Data, port) {
				return true
			}
		}
	}
	return false
}

// inRepair lists the descriptors of a task that are in repair mode.
func inRepair(t testing.TB, pid int) (list []int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		if v, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR); err == nil && v != 0 {
			list = append(list, n)
		}
		unix.Close(fd)
	}
	return list
}

// free wants that neither lock nor repair mode is left of a dump.
func (s *server) free() {
	s.t.Helper()
	s.await("network without a lock", func() bool { return len(s.locks()) == 0 && len(inRepair(s.t, s.Pid)) == 0 })
}

// TestOutsideClient dumps a server whose client is not part of the tree. The client goes on sending while nobody is there,
// and notices nothing.
func TestOutsideClient(t *testing.T) {
	RequireRoot(t)
	for _, address := range []string{"::1", "::", "::ffff:127.0.0.1"} {
		for name, pair := range map[string][2]string{
			"ours": {tools.Criu, tools.Criu}, "peer restores ours": {tools.Criu, tools.Peer}, "ours restores peer": {tools.Peer, tools.Criu},
		} {
			t.Run(name+" at "+address, func(t *testing.T) {
				if pair[0] == "" || pair[1] == "" {
					t.Skip("CRIU_PEER names no criu binary")
				}
				s, images := startServer(t, address), t.TempDir()
				s.echo()
				s.Dump(pair[0], images, "--tcp-established")
				data := []byte("is anybody there?")
				s.send(data)
				s.Restore(pair[1], images, "--tcp-established")
				s.expect(data)
				s.echo()
				s.free()
				s.end()
			})
		}
	}
}

// TestConnectionStays takes snapshots of a server that goes on.
func TestConnectionStays(t *testing.T) {
	RequireRoot(t)
	for _, method := range []string{"iptables", "nftables", "skip"} {
		t.Run(method, func(t *testing.T) {
			s := startServer(t, "::1")
			for range 3 {
				s.echo()
				s.Dump(tools.Criu, t.TempDir(), "--leave-running", "--tcp-established", "--network-lock", method)
				s.free()
			}
			s.echo()
			s.end()
		})
	}
}

// TestConnectionRefused wants a dump without --tcp-established to say so, and to touch nothing.
func TestConnectionRefused(t *testing.T) {
	RequireRoot(t)
	s := startServer(t, "::1")
	images := t.TempDir()
	for _, extra := range [][]string{nil, {"--dry-run"}} {
		result := Run(t, append([]string{tools.Criu, "dump", "-t", strconv.Itoa(s.Pid), "-D", images, "-o", "dump.log"}, extra...)...)
		if result.Code == 0 || !strings.Contains(result.Stderr, "ESTABLISHED") || !strings.Contains(result.Stderr, "--tcp-established") {
			t.Errorf("dump %v: exit status %d, %s", extra, result.Code, result.Stderr)
		}
	}
	s.free()
	s.echo()
	s.end()
}

// TestConnectionClosed restores a server whose connection was left behind.
func TestConnectionClosed(t *testing.T) {
	RequireRoot(t)
	s, images := startServer(t, "::1"), t.TempDir()
	s.Dump(tools.Criu, images, "--tcp-close")
	s.Restore(tools.Criu, images, "--tcp-close")
	s.Go()
}

// TestKilledDumpOfConnection kills the tool at random instants: the connection is never left locked, nor in repair mode.
func TestKilledDumpOfConnection(t *testing.T) {
	RequireRoot(t)
	s := startServer(t, "::1")
	whole := s.Dump(tools.Criu, t.TempDir(), "--leave-running", "--tcp-established").Wall
	killed := 0
	for range killRounds(20) {
		delay := time.Duration(mathrand.Int64N(int64(whole + whole/4)))
		if killAt(t, delay, tools.Criu, "dump", "-t", strconv.Itoa(s.Pid), "-D", t.TempDir(), "-o", "dump.log", "--leave-running", "--tcp-established") {
			killed++
		}
		s.free()
		s.echo()
	}
	t.Logf("killed %d dumps that take %v", killed, whole)
	s.end()
}

// guardians says whether a guardian of a tool that was killed is at work yet. They are the test's children then, and told by
// what they execute: a sentry that becomes a guardian has other names on the way.
func guardians() bool {
	reapOrphans()
	tool, _ := filepath.EvalSymlinks(tools.Criu)
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, pid := range strings.Fields(string(b)) {
			exe, _ := os.Readlink("/proc/" + pid + "/exe")
			args, _ := os.ReadFile("/proc/" + pid + "/cmdline") // empty within an exec
			if strings.HasPrefix(exe, "/memfd:guardian") || exe == tool && (len(args) == 0 || string(args) == "criu-guardian\x00") {
				return true
			}
		}
	}
	return false
}

// whole waits until a task whose restorer died runs and has its connection, or is gone.
func (s *server) whole() (running bool) {
	s.t.Helper()
	program, err := os.Stat(tools.Workload(s.t, "tcpserver"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.await("task that runs or is gone", func() bool {
		reapOrphans()
		exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", s.Pid))
		running = err == nil && os.SameFile(exe, program) && statusField(s.Pid, "TracerPid") == "0" && len(s.locks()) == 0
		return running || !alive(s.Pid)
	})
	s.await("end of the guardian", func() bool { return !guardians() })
	return running
}

// TestKilledRestoreOfConnection kills the tool at random instants of a restore: the tree has its connection, or there is
// none and the next restore works.
func TestKilledRestoreOfConnection(t *testing.T) {
	RequireRoot(t)
	s := startServer(t, "::1")
	killed, restored := 0, 0
	first := t.TempDir()
	s.Dump(tools.Criu, first, "--tcp-established")
	whole := s.Restore(tools.Criu, first, "--tcp-established").Wall
	for range killRounds(8) {
		images := t.TempDir()
		s.Dump(tools.Criu, images, "--tcp-established")
		delay := time.Duration(mathrand.Int64N(int64(whole + whole/4)))
		if killAt(t, delay, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "--tcp-established") {
			killed++
		}
		if s.whole() {
			restored++
		} else {
			s.await("free pid", func() bool {
				reapOrphans()
				return unix.Kill(s.Pid, 0) == unix.ESRCH
			})
			s.Restore(tools.Criu, images, "--tcp-established")
		}
		s.free()
		s.echo()
	}
	t.Logf("killed %d restores, %d were whole", killed, restored)
	s.end()
}
