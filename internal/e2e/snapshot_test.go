package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
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
