package cgfreeze

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// groups makes an empty control group in every hierarchy that has a freezer here.
func groups(t *testing.T) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make control groups")
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		v1 := m.FSType == "cgroup" && strings.Contains(","+m.VFSOptions+",", ",freezer,")
		return m.FSType != "cgroup2" && !v1, false
	})
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, fmt.Sprintf("cryo-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Logf("%v", err)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		t.Skip("no hierarchy with a freezer is mounted where groups can be made")
	}
	return dirs
}

func TestFreeze(t *testing.T) {
	for _, dir := range groups(t) {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			// A shell that counts, in the group.
			cmd := exec.Command("sh", "-c", "echo $$ >$0/cgroup.procs; while :; do echo; done", dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			g, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			defer func() {
				if err := g.Leave(); err != nil {
					t.Error(err)
				}
				cmd.Process.Kill()
				cmd.Wait()
			}()
			if g.Found() {
				t.Error("a new group is frozen")
			}
			one := make([]byte, 1)
			if _, err := out.Read(one); err != nil { // it is in the group and runs
				t.Fatal(err)
			}
			end := time.Now().Add(20 * time.Second)
			if err := g.Freeze(t.Context(), end); err != nil {
				t.Fatal(err)
			}
			if is, err := g.frozen(); !is || err != nil {
				t.Errorf("frozen: %v, %v", is, err)
			}
			again, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if _, text := again.Undo(); !again.Found() || text != again.kind.freeze {
				t.Errorf("a frozen group is to be left %q", text)
			}
			again.Close()
			if err := g.Thaw(t.Context(), end); err != nil {
				t.Fatal(err)
			}
			for range 1 << 17 { // more than a pipe holds: it runs
				if _, err := out.Read(one); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A group below a frozen one cannot be thawed, which is found out in time.
func TestThawBelowFrozen(t *testing.T) {
	for _, dir := range groups(t) {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			below := filepath.Join(dir, "below")
			if err := os.Mkdir(below, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(below)
			over, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer over.Close()
			defer over.Leave()
			if err := over.Freeze(t.Context(), time.Now().Add(20*time.Second)); err != nil {
				t.Fatal(err)
			}
			g, err := Open(below)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if g.Found() {
				t.Error("the group counts as frozen though only the one above it is")
			}
			if err := g.Thaw(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "above") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no control group") {
		t.Errorf("got %v", err)
	}
}
