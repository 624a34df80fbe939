package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestSnapshotWithoutCopies forbids a task to fork by its control group: its memory cannot be copied on write then, and is
// stored while it stands still, as the log says.
func TestSnapshotWithoutCopies(t *testing.T) {
	RequireRoot(t)
	var group string
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, "cryo-e2e-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		defer os.Remove(dir)
		if _, err := os.Stat(filepath.Join(dir, "pids.max")); err == nil {
			group = dir
			break
		}
	}
	if group == "" {
		t.Skip("no control group with a limit of tasks can be made here")
	}
	target := tools.StartWorkload(t, "instant", "16", "2")
	defer target.Kill() // before the group goes
	for _, w := range [][2]string{{"cgroup.procs", strconv.Itoa(target.Pid)}, {"pids.max", "1"}} {
		if err := os.WriteFile(filepath.Join(group, w[0]), []byte(w[1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	images := t.TempDir()
	target.Dump(tools.Criu, images, "--leave-running", "--manage-cgroups=ignore")
	log, err := os.ReadFile(filepath.Join(images, "dump.log"))
	if err != nil || !bytes.Contains(log, []byte("no copy-on-write copies")) {
		t.Errorf("the log does not say that there are no copies: %v\n%s", err, log)
	}
	target.Kill()
	target.Restore(tools.Criu, images, "--manage-cgroups=ignore")
	target.Go()
}

// TestPipedSnapshot sends the memory of a task that goes on writing to it into a pipe whose reader takes its time: pages on their
// way there stay what they were.
func TestPipedSnapshot(t *testing.T) {
	RequireRoot(t)
	becomeSubreaper(t)
	target, work := tools.StartWorkload(t, "instant", "32", "2"), t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var said, stream bytes.Buffer
	dump := exec.Command(tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", "-", "-W", work, "-o", "dump.log", "-v4", "--leave-running")
	dump.Stdout, dump.Stderr = w, &said
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for part := make([]byte, 64<<10); ; time.Sleep(100 * time.Microsecond) {
		n, err := r.Read(part)
		stream.Write(part[:n])
		if err != nil {
			break
		}
	}
	log := filepath.Join(work, "dump.log")
	if err := dump.Wait(); err != nil {
		t.Fatalf("dump: %v: %s\n%s", err, &said, errorsOf(log))
	}
	if text, err := os.ReadFile(log); err != nil || bytes.Contains(text, []byte(" self=0")) {
		t.Logf("no pages were lent, which a filter of system calls or the processor may be the reason of: %v", err)
	}
	target.Kill()
	restore := exec.Command(tools.Criu, "restore", "-d", "-D", "-", "-W", work, "-o", "restore.log", "-v4")
	restore.Stdin, restore.Stderr = &stream, &said
	if err := restore.Run(); err != nil {
		t.Fatalf("restore: %v: %s\n%s", err, &said, errorsOf(filepath.Join(work, "restore.log")))
	}
	target.Go()
}
