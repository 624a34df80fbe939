package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// aloneEnv marks a test that runs in a pid namespace of its own.
const aloneEnv = "CRYO_TEST_ALONE"

// alone runs the calling test in a pid namespace of its own, where nobody else takes ids, and says whether it is there.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneEnv) != "" {
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err == nil {
			err = unix.Mount("proc", "/proc", "proc", 0, "")
		}
		if err != nil {
			t.Skip("a mount namespace is of no use here: ", err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), aloneEnv+"=1", "CRYO_BIN="+filepath.Dir(tools.Criu))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState == nil:
		t.Skip("no pid namespace: ", err)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	default:
		t.Logf("%s", out)
	}
	return false
}

// roundsOfRestores restores a set again and again by tools that start with ids around those of the set, and kills what came of
// it. It is a shell that does it, because a test has threads of its own.
const roundsOfRestores = `
for i in $(seq 1 30); do
	echo $(($PID - 1 - $i % 6)) > /proc/sys/kernel/ns_last_pid || exit 77
	$CRIU restore -D $IMAGES -W . -o $i.log -v4 --action-script ./kill 2> $i.err
	echo $? > $i.code
done
`

const killRestored = `#!/bin/sh
if [ "$CRTOOLS_SCRIPT_ACTION" = post-resume ]; then kill -9 $CRTOOLS_INIT_PID; fi
`

// TestOwnID makes the tool start with ids around those of the set: that of one of its threads it gives away, its own it
// cannot.
func TestOwnID(t *testing.T) {
	RequireRoot(t)
	if !alone(t) {
		return
	}
	target, images, dir := tools.StartWorkload(t, "threads", "3"), t.TempDir(), t.TempDir()
	target.Dump(tools.Criu, images)
	if err := os.WriteFile(filepath.Join(dir, "kill"), []byte(killRestored), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", roundsOfRestores)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PID="+strconv.Itoa(target.Pid), "CRIU="+tools.Criu, "IMAGES="+images)
	if err := cmd.Run(); err != nil {
		t.Skip("pids cannot be chosen: ", err)
	}
	again, itself := 0, 0
	for i := 1; i <= 30; i++ {
		read := func(suffix string) string {
			b, _ := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)+suffix))
			return string(b)
		}
		switch said := read(".err"); {
		case read(".code") == "0\n":
			if strings.Contains(read(".log"), "Starting again") {
				again++
			}
		case strings.Contains(said, "is one of this process itself: start it again"):
			itself++
		default:
			t.Errorf("restore %d: exit status %s, stderr %s", i, read(".code"), said)
		}
	}
	t.Logf("%d restores had threads with ids of the set, %d such an id themselves", again, itself)
	if again == 0 {
		t.Error("no thread of the tool ever had an id of the set")
	}
	target.Restore(tools.Criu, images)
	target.Go()
}
