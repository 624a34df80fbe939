package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"cryo/internal/procfs"
)

// moved is a workload whose tree is moved into a pid namespace of this machine, where its pids are free.
type moved struct {
	*Target
	dest *exec.Cmd // the destination, in its namespace
	said bytes.Buffer
	dir  string // of the destination's log
}

// receive starts a destination and waits until it listens at port.
func receive(t *testing.T, target *Target, port string) *moved {
	t.Helper()
	m := &moved{Target: target, dir: t.TempDir()}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The namespace ends with its init, so that waits for the restored tree.
	m.dest = exec.Command("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", tools.Criu, "receive", "-D", m.dir, "--address", "127.0.0.1",
		"--port", port, "-o", "receive.log", "-v4", "--status-fd", "3", "--tcp-established")
	m.dest.ExtraFiles, m.dest.Stderr = []*os.File{w}, &m.said
	if err := m.dest.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		m.dest.Process.Kill()
		m.dest.Wait()
	})
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("the destination does not listen: %v; %s", err, &m.said)
	}
	return m
}

// migrate moves the tree.
func (m *moved) migrate(t *testing.T, port string) Result {
	t.Helper()
	images := t.TempDir()
	m.Tree()
	return Run(t, tools.Criu, "migrate", "-t", strconv.Itoa(m.Pid), "-D", images, "--address", "127.0.0.1", "--port", port,
		"-o", "migrate.log", "-v4", "--tcp-established")
}

// copies counts the processes that run a program in a directory, those that are stopped apart.
func copies(t *testing.T, dir string) (running, stopped int) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range dirs {
		if cwd, err := os.Readlink(proc + "/cwd"); err != nil || cwd != dir {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(proc))
		task, err := procfs.OpenTask(pid)
		if err != nil {
			continue
		}
		st, err := task.Stat()
		task.Close()
		switch {
		case err != nil:
		case st.State == 'T' || st.State == 't':
			stopped++
		case st.State != 'Z' && st.State != 'X':
			running++
		}
	}
	return running, stopped
}

// passed lets the one copy there is check itself.
func (m *moved) passed() {
	m.t.Helper()
	m.Signal()
	m.await("verdict", func() bool {
		_, err := os.Stat(filepath.Join(m.Dir, "verdict"))
		return err == nil
	})
	if got := m.read("verdict"); got != "PASS" {
		m.t.Errorf("verdict %q", got)
	}
}

func TestMigrate(t *testing.T) {
	RequireRoot(t)
	// The two machines share their network here, so names of sockets would be taken.
	for _, name := range []string{"idle", "memory", "threads", "files", "tree", "signals", "ring"} {
		t.Run(name, func(t *testing.T) {
			target, port := tools.StartWorkload(t, name), freePort(t)
			m := receive(t, target, port)
			if r := m.migrate(t, port); r.Code != 0 {
				t.Fatalf("%s\n%s\n%s", r.Stderr, &m.said, errorsOf(filepath.Join(m.dir, "receive.log")))
			}
			m.Gone()
			m.passed()
			if err := m.dest.Wait(); err != nil {
				t.Errorf("the destination: %v: %s", err, &m.said)
			}
		})
	}
}

// TestMigrateCut cuts all connections of a migration when so and so many bytes have gone over them; new ones can be made. There
// is exactly one copy of the tree afterwards, and it is whole.
func TestMigrateCut(t *testing.T) {
	RequireRoot(t)
	whole := cutter(t, "", 1<<40)
	total := func() int64 {
		target, port := tools.StartWorkload(t, "bigmem", "8"), freePort(t)
		m := receive(t, target, port)
		whole.to = port
		if r := m.migrate(t, whole.port); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		m.Gone()
		m.passed()
		return whole.gone()
	}()
	// Most cuts go where it matters: into the last hundreds of bytes.
	var cuts []int64
	for i := range 6 {
		cuts = append(cuts, rand.Int64N(total), total-int64(1+i*23)-rand.Int64N(40))
	}
	for _, cut := range cuts {
		t.Run(fmt.Sprintf("%d of %d", cut, total), func(t *testing.T) {
			target, port := tools.StartWorkload(t, "bigmem", "8"), freePort(t)
			m := receive(t, target, port)
			c := cutter(t, port, cut)
			r := m.migrate(t, c.port)
			m.reapTree()
			m.await("one copy", func() bool {
				reapOrphans()
				running, stopped := copies(t, m.Dir)
				return running == 1 && stopped == 0
			})
			if here := m.Alive(); here == (r.Code == 0) {
				t.Errorf("the copy is here: %v, and the migration says %q", here, r.Stderr)
			}
			m.passed()
		})
	}
}

// TestMigrateKilled kills one side or the other. There are never two copies that run, and never none: the one there is runs, or
// stands stopped where nobody can know whether there is another.
func TestMigrateKilled(t *testing.T) {
	RequireRoot(t)
	for i := range 10 {
		source := i%2 == 0
		t.Run(fmt.Sprintf("source=%v", source), func(t *testing.T) {
			target, port := tools.StartWorkload(t, "bigmem", "8"), freePort(t)
			m := receive(t, target, port)
			m.Tree()
			images := t.TempDir()
			cmd := exec.Command(tools.Criu, "migrate", "-t", strconv.Itoa(m.Pid), "-D", images, "--address", "127.0.0.1", "--port", port, "-o", "migrate.log", "-v4")
			t.Cleanup(func() {
				if t.Failed() {
					running, stopped := copies(t, m.Dir)
					source, _ := os.ReadFile(filepath.Join(images, "migrate.log"))
					dest, _ := os.ReadFile(filepath.Join(m.dir, "receive.log"))
					t.Logf("%d run, %d are stopped; source: %v\n%s\ndestination: %s\n%s", running, stopped, cmd.ProcessState, source, &m.said, dest)
				}
			})
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			victim := m.dest.Process
			if source {
				victim = cmd.Process
			}
			after := time.Duration(rand.Int64N(int64(400 * time.Millisecond)))
			timer := time.AfterFunc(after, func() { victim.Kill() })
			defer timer.Stop()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if !source {
				// A source that is in doubt asks until it is told to give up.
				select {
				case <-ended:
				case <-time.After(after + 3*time.Second):
					cmd.Process.Signal(syscall.SIGTERM) // SIGINT may be ignored, where a shell started all this in the background
					<-ended
				}
			} else {
				<-ended
			}
			// A task that is held is seen running until it has a processor to stop on.
			m.await("one copy", func() bool {
				m.reapTree()
				running, stopped := copies(t, m.Dir)
				gone := !source && cmd.ProcessState.Success() // it had arrived, and ended with its machine
				return running == 1 || running == 0 && (stopped == 1 || gone)
			})
			t.Logf("killed after %v", after)
		})
	}
}

// cut is a relay that breaks all its connections once.
type cut struct {
	port, to string
	mu       sync.Mutex
	left     int64
	bytes    int64
	done     bool
	open     []net.Conn
}

func cutter(t *testing.T, to string, after int64) *cut {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cut{port: strconv.Itoa(l.Addr().(*net.TCPAddr).Port), to: to, left: after}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", c.to))
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.open = append(c.open, in, out)
			c.mu.Unlock()
			go c.relay(in, out)
			go c.relay(out, in)
		}
	}()
	return c
}

func (c *cut) relay(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if n = c.take(n); n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// take counts bytes, and breaks everything when there have been enough.
func (c *cut) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += int64(n)
	if c.done {
		return n
	}
	if c.left -= int64(n); c.left > 0 {
		return n
	}
	c.done = true
	for _, conn := range c.open {
		conn.Close()
	}
	return 0
}

func (c *cut) gone() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
