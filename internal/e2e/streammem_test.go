package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestPipeMemory restores from a pipe within a control group that counts memory: what was read of the stream is given back
// as it is restored, so that all of it is there once and not twice.
func TestPipeMemory(t *testing.T) {
	const mib, room = 192, 64
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, strings.Repeat("secret", 8))
	for _, way := range [][]string{nil, {"--compress"}, {"--key-file", key}} {
		t.Run(strings.Join(way, " "), func(t *testing.T) {
			g, peak := memoryGroup(t)
			target, work := tools.StartWorkload(t, "bigmem", strconv.Itoa(mib)), t.TempDir()
			becomeSubreaper(t)
			target.Tree()
			stream := pipedDump(t, target, work, way...)
			target.Gone()
			restore := exec.Command("/bin/sh", "-c", `echo 0 > "$0" && exec "$@"`, fmt.Sprintf("/proc/%d/fd/%d/%s/cgroup.procs", os.Getpid(), g.root.Fd(), g.top),
				tools.Criu, "restore", "-d", "-D", "-", "-W", work, "-o", "restore.log", "-v4", "--manage-cgroups=ignore")
			if len(way) == 2 {
				restore.Args = append(restore.Args, way...)
			}
			restore.Env = append(os.Environ(), "GOMAXPROCS=2") // each worker has a window of its own
			var said bytes.Buffer
			restore.Stdin, restore.Stderr = bytes.NewReader(stream), &said
			stream = nil
			if err := restore.Run(); err != nil {
				t.Fatalf("restore: %v: %s\n%s", err, &said, errorsOf(filepath.Join(work, "restore.log")))
			}
			if got, err := strconv.ParseInt(strings.TrimSpace(g.read(g.top, peak)), 10, 64); err != nil || got > (mib+room)<<20 {
				t.Errorf("a restore of %d MiB took %d MiB, %v", mib, got>>20, err)
			} else {
				t.Logf("a restore of %d MiB took %d MiB", mib, got>>20)
			}
			target.Go()
		})
	}
}

// memoryGroup makes a control group that counts memory, and names the file with the most that it ever had.
func memoryGroup(t *testing.T) (g *groups, peak string) {
	t.Helper()
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil && strings.Contains(string(text), ":memory:") {
		return newGroups(t, "memory"), "memory.max_usage_in_bytes"
	}
	g = newGroups(t, "")
	if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/%s/memory.peak", g.root.Fd(), g.top)); err != nil {
		t.Skip("no control group counts memory here: ", err)
	}
	return g, "memory.peak"
}

// pipedDump is what a dump writes into a pipe.
func pipedDump(t *testing.T, target *Target, work string, extra ...string) []byte {
	t.Helper()
	dump := exec.Command(tools.Criu, append([]string{"dump", "-t", strconv.Itoa(target.Pid), "-D", "-", "-W", work, "-o", "dump.log", "-v4"}, extra...)...)
	var stream, said bytes.Buffer
	dump.Stdout, dump.Stderr = &stream, &said
	if err := dump.Run(); err != nil {
		t.Fatalf("dump: %v: %s\n%s", err, &said, errorsOf(filepath.Join(work, "dump.log")))
	}
	return stream.Bytes()
}
