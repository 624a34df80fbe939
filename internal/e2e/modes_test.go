package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPipe sends a dump straight into a restore, on the same machine with the same pids.
func TestPipe(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target, work := start(), t.TempDir()
		becomeSubreaper(t)
		target.Tree()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var said [2]bytes.Buffer
		dump := exec.Command(tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", "-", "-W", work, "-o", "dump.log", "-v4")
		dump.Stdout, dump.Stderr = w, &said[0]
		restore := exec.Command(tools.Criu, "restore", "-d", "-D", "-", "-W", work, "-o", "restore.log", "-v4")
		dump.Args, restore.Args = append(dump.Args, target.Options...), append(restore.Args, target.Options...)
		restore.Stdin, restore.Stderr = r, &said[1]
		for _, cmd := range []*exec.Cmd{restore, dump} {
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
		}
		r.Close()
		w.Close()
		if err := dump.Wait(); err != nil {
			t.Fatalf("dump: %v: %s\n%s", err, &said[0], errorsOf(filepath.Join(work, "dump.log")))
		}
		target.reapTree() // the restore waits for the pids
		if err := restore.Wait(); err != nil {
			t.Fatalf("restore: %v: %s\n%s", err, &said[1], errorsOf(filepath.Join(work, "restore.log")))
		}
		target.Tree()
		target.Go()
	})
}

// reapTree collects the tasks of a dumped tree; unlike Gone it takes one that is alive for a restored one.
func (target *Target) reapTree() {
	for _, pid := range target.tree {
		unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
	reapOrphans()
}

// TestPageServer sends the pages through a page server: this one's, and the peer's.
func TestPageServer(t *testing.T) {
	for name, server := range map[string]string{"own": tools.Criu, "peer": tools.Peer} {
		t.Run(name, func(t *testing.T) {
			if server == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			eachWorkload(t, func(t *testing.T, start func() *Target) {
				target, images := start(), t.TempDir()
				port := freePort(t)
				Must(t, filepath.Join(images, "server.log"), server, "page-server", "-D", images, "--address", "127.0.0.1",
					"--port", port, "--daemon", "--pidfile", "server.pid", "-o", "server.log", "-v4")
				target.Dump(tools.Criu, images, "--page-server", "--address", "127.0.0.1", "--port", port)
				awaitEnd(t, target, filepath.Join(images, "server.pid"))
				target.Restore(tools.Criu, images)
				target.Go()
			})
		})
	}
}

// freePort is a port that was free a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// awaitEnd waits for the process whose pid a file holds.
func awaitEnd(t testing.TB, target *Target, pidfile string) {
	t.Helper()
	b, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	target.await("end of the page server", func() bool {
		unix.Wait4(pid, nil, unix.WNOHANG, nil)
		return !alive(pid)
	})
}

// TestFreezeCgroup stops the tree by the freezer of its control group, of either kind, and leaves one that was
// paused before the dump paused.
func TestFreezeCgroup(t *testing.T) {
	RequireRoot(t)
	tried := 0
	for _, freezer := range []struct{ root, state, frozen, thawed string }{
		{"/sys/fs/cgroup", "cgroup.freeze", "1", "0"},
		{"/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"},
		{"/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"},
	} {
		group := filepath.Join(freezer.root, fmt.Sprintf("cryo-e2e-%d", os.Getpid()))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		state := filepath.Join(group, freezer.state)
		if _, err := os.Stat(state); err != nil {
			os.Remove(group)
			continue
		}
		tried++
		t.Run(freezer.root, func(t *testing.T) {
			target := tools.StartWorkload(t, "tree")
			t.Cleanup(func() {
				write(t, state, freezer.thawed)
				target.Kill()
				target.await("an empty control group", func() bool { return os.Remove(group) == nil })
			})
			for _, pid := range target.Tree() {
				write(t, filepath.Join(group, "cgroup.procs"), strconv.Itoa(pid))
			}
			write(t, state, freezer.frozen)
			target.Dump(tools.Criu, t.TempDir(), "-R", "--freeze-cgroup", group)
			b, err := os.ReadFile(state)
			if err != nil || !regexp.MustCompile("^(1|FROZEN|FREEZING)\n$").Match(b) {
				t.Errorf("the paused group is left %q, %v", b, err)
			}
			for _, word := range []string{freezer.frozen, freezer.thawed} {
				write(t, state, word)
				newChain(t, target).PreDump("--freeze-cgroup", group)
				b, err := os.ReadFile(state)
				if frozen := regexp.MustCompile("^(1|FROZEN|FREEZING)\n$").Match(b); err != nil || frozen != (word == freezer.frozen) {
					t.Errorf("a pre-dump of a group that was %s leaves it %q, %v", word, b, err)
				}
			}
			images := t.TempDir()
			target.Dump(tools.Criu, images, "--freeze-cgroup", group)
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
	if tried == 0 {
		t.Skip("no control groups with a freezer can be made here")
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}
