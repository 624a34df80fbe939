package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/procfs"

	"github.com/google/go-cmp/cmp"
)

// TestLazy restores every workload without its memory, which comes while it runs and checks itself: served by the restore's
// own server, by one started before, from images far away, and by the peer's daemon.
func TestLazy(t *testing.T) {
	daemon := func(t *testing.T, criu, images string, extra ...string) {
		t.Helper()
		cmd := append([]string{criu, "lazy-pages", "-D", images, "--daemon", "-o", "lazy.log", "-v4"}, extra...)
		Must(t, filepath.Join(images, "lazy.log"), cmd...)
	}
	ways := []struct {
		name  string
		peer  bool
		serve func(t *testing.T, images string)
	}{
		{"own", false, func(*testing.T, string) {}},
		{"daemon", false, func(t *testing.T, images string) { daemon(t, tools.Criu, images) }},
		{"peer's daemon", true, func(t *testing.T, images string) { daemon(t, tools.Peer, images) }},
		{"far away", false, func(t *testing.T, images string) {
			port := freePort(t)
			Must(t, filepath.Join(images, "server.log"), tools.Criu, "page-server", "--lazy-pages", "-D", images, "--address", "127.0.0.1",
				"--port", port, "--daemon", "-o", "server.log", "-v4")
			daemon(t, tools.Criu, images, "--page-server", "--address", "127.0.0.1", "--port", port)
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			if way.peer && tools.Peer == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			eachWorkload(t, func(t *testing.T, start func() *Target) {
				target, images := start(), t.TempDir()
				target.Dump(tools.Criu, images)
				way.serve(t, images)
				target.Restore(tools.Criu, images, "--lazy-pages")
				target.allPages(t)
				target.Go()
			})
		})
	}
}

// TestLazyUnderFire has the restored tasks do to their memory all that can be done while it comes.
func TestLazyUnderFire(t *testing.T) {
	RequireRoot(t)
	for range 5 {
		target, images := tools.StartWorkload(t, "lazyfire", "32"), t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images, "--lazy-pages")
		target.Go()
	}
}

// TestLazyReadFromOutside has somebody read the arguments and the environment of a task all the time, as ps does once, while
// it gets memory that comes late: pages that are not there yet must not come to be pages of zeros.
func TestLazyReadFromOutside(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	files := []string{fmt.Sprintf("/proc/%d/cmdline", target.Pid), fmt.Sprintf("/proc/%d/environ", target.Pid)}
	read := func() (all string) {
		for _, file := range files {
			b, _ := os.ReadFile(file)
			all += string(b)
		}
		return all
	}
	want := read()
	target.Dump(tools.Criu, images)
	for range 5 {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					read()
				}
			}
		}()
		target.Restore(tools.Criu, images, "--lazy-pages")
		// A reader from outside does not wait for a page that is still to come, and has no text.
		target.await("all pages", func() bool { return !served(t, target.Pid) })
		close(stop)
		<-stopped
		if diff := cmp.Diff(want, read()); diff != "" {
			t.Fatal(diff)
		}
		target.Kill()
	}
	target.Restore(tools.Criu, images, "--lazy-pages")
	target.Go()
}

// TestLazyLetsGo has the server fill memory for longer than whoever reads what the restore prints has to wait.
func TestLazyLetsGo(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "bigmem", "512"), t.TempDir()
	target.Dump(tools.Criu, images)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(tools.Criu, "restore", "-d", "--lazy-pages", "-D", images, "-o", "restore.log")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if !served(t, target.Pid) {
		t.Log("all pages were in already")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	target.Tree()
	target.Go()
}

// TestWorkingSet records what a task wants first, and restores it again with that.
func TestWorkingSet(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	target.Dump(tools.Criu, images)
	set := filepath.Join(images, "working-set")
	target.Restore(tools.Criu, images, "--lazy-pages", "--working-set", set)
	target.await("the recorded working set", func() bool {
		_, err := os.Stat(set)
		return err == nil
	})
	target.Kill()
	target.Restore(tools.Criu, images, "--lazy-pages", "--working-set", set)
	target.Go()
}

// TestLazyServerKilled kills the server of a task that misses most of its memory. The task must not go on: it would see zeros.
func TestLazyServerKilled(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "bigmem", "512"), t.TempDir()
	target.Dump(tools.Criu, images)
	// A server that is stopped fills nothing.
	cmd := exec.Command(tools.Criu, "lazy-pages", "-D", images, "-o", "lazy.log", "-v4")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	target.await("the server's socket", func() bool {
		_, err := os.Stat(filepath.Join(images, "lazy-pages.socket"))
		return err == nil
	})
	target.Restore(tools.Criu, images, "--lazy-pages")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !missing(t, images) {
		t.Skip("all pages were in before the server was killed")
	}
	target.await("the end of the task", func() bool { return !target.Alive() || zombie(target.Pid) })
}

// allPages waits for all pages of a workload that compares what smaps tells, "um" too.
func (target *Target) allPages(t *testing.T) {
	t.Helper()
	if strings.HasSuffix(t.Name(), "/mapkinds") {
		target.await("all pages", func() bool { return !served(t, target.Pid) })
	}
}

// served says whether faults of a task are answered by a server.
func served(t *testing.T, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " um ")
}

// missing says whether the server's log does not tell that all pages are in.
func missing(t *testing.T, images string) bool {
	b, err := os.ReadFile(filepath.Join(images, "lazy.log"))
	if err != nil {
		t.Fatal(err)
	}
	return !strings.Contains(string(b), "all pages are in")
}

func zombie(pid int) bool {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return false
	}
	defer dir.Close()
	st, err := dir.Stat()
	return err == nil && st.State == 'Z'
}
