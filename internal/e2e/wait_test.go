package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// startRestore restores a target by a tool that stays as the parent of its root.
func (target *Target) startRestore(images string) (tool *exec.Cmd, stderr *bytes.Buffer) {
	target.t.Helper()
	tool, stderr = exec.Command(tools.Criu, "restore", "-D", images, "-o", "restore.log", "-v4"), new(bytes.Buffer)
	tool.Stderr = stderr
	if err := tool.Start(); err != nil {
		target.t.Fatal(err)
	}
	target.t.Cleanup(func() {
		tool.Process.Kill()
		tool.Wait()
	})
	return tool, stderr
}

// TestRestoreWaits restores without --restore-detached. The root is the one child of the tool's first thread, where criu-ns
// looks for it, and the tool ends with it.
func TestRestoreWaits(t *testing.T) {
	RequireRoot(t)
	for _, name := range []string{"memory", "ring"} { // one task; several, for which there is a guardian
		t.Run(name, func(t *testing.T) {
			target, images := tools.StartWorkload(t, name), t.TempDir()
			target.Dump(tools.Criu, images)
			tool, stderr := target.startRestore(images)
			list := fmt.Sprintf("/proc/%d/task/%[1]d/children", tool.Process.Pid)
			if _, err := os.Stat(list); err != nil {
				t.Skip("the kernel does not list children: ", err)
			}
			target.await("root as the only child of the tool's first thread", func() bool {
				b, _ := os.ReadFile(list)
				return strings.TrimSpace(string(b)) == strconv.Itoa(target.Pid)
			})
			target.Go()
			if err := tool.Wait(); err != nil {
				t.Errorf("%v: %s\n%s", err, stderr, errorsOf(filepath.Join(images, "restore.log")))
			}
		})
	}
}

// TestRestoreAsInit restores with the tool as the first process of a pid namespace. It outlives the root until the others
// there, a dump of the root for one, have ended too.
func TestRestoreAsInit(t *testing.T) {
	RequireRoot(t)
	if !alone(t) {
		return
	}
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	target.Dump(tools.Criu, images)
	out, err := os.Create(filepath.Join(images, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	init := exec.Command("/bin/sh", "-c", restoreAsInit)
	init.Env = append(os.Environ(), "CRIU="+tools.Criu, "IMAGES="+images, fmt.Sprint("PID=", target.Pid))
	init.Stdout, init.Stderr = out, out
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	target.Signal() // it is to end as soon as it is restored
	err = init.Run()
	said, _ := os.ReadFile(out.Name())
	if verdict := target.read("verdict"); err != nil || verdict != "PASS" || !bytes.Contains(said, []byte("outlived it")) {
		t.Errorf("%v, verdict %q: %s\n%s", err, verdict, said, errorsOf(filepath.Join(images, "restore.log")))
	}
}

// restoreAsInit becomes the restore; its other child sees the root come and go, and works on.
const restoreAsInit = `
mount -t proc proc /proc || exit
(
	until [ -e $IMAGES/stats-restore ]; do :; done # nothing that takes an id
	while kill -0 $PID 2>&-; do :; done
	for i in $(seq 1 200); do /bin/true; done
	echo outlived it
) &
exec $CRIU restore -D $IMAGES -o restore.log -v4
`
