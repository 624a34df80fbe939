package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// startRing starts a workload that has an io_uring.
func startRing(t *testing.T, name string, args ...string) *Target {
	RequireRoot(t)
	target := tools.StartWorkload(t, name, args...)
	if why := target.read("refused"); why != "" {
		target.Go()
		t.Skip("no io_uring here: ", why)
	}
	return target
}

// TestRingInFlight wants a dump to refuse at once what the kernel is busy with on behalf of a program, to say what it is and
// nothing else, and to let it go on. Threads of the kernel's, which look like the program's own but can run nothing for the
// tool, must not be in the way.
func TestRingInFlight(t *testing.T) {
	for what, says := range map[string]string{
		"poll":    "an io_uring with one request in flight, waiting for a file to become ready",
		"timeout": "an io_uring with one request in flight",
		"thread":  "an io_uring that the thread has registered for itself",
	} {
		t.Run(what, func(t *testing.T) {
			target := startRing(t, "ringbusy", what)
			for _, option := range []string{"--dry-run", "--leave-running", "-v4"} {
				images := t.TempDir()
				result := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", option)
				if result.Code == 0 || !strings.Contains(result.Stderr, says) || strings.Contains(result.Stderr, "more (") {
					t.Fatalf("dump %s: exit status %d, %s", option, result.Code, result.Stderr)
				}
				if _, err := os.Stat(filepath.Join(images, "inventory.img")); err == nil {
					t.Fatalf("dump %s left a set", option)
				}
			}
			target.Go()
		})
	}
}

// TestRingSettles dumps a program whose only request is done in a moment.
func TestRingSettles(t *testing.T) {
	target, images := startRing(t, "ringbusy", "soon"), t.TempDir()
	target.Dump(tools.Criu, images)
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestPeerRefusesRing wants criu to refuse a set with a ring in it, which it cannot restore, instead of leaving it out.
func TestPeerRefusesRing(t *testing.T) {
	if tools.Peer == "" {
		t.Skip("CRIU_PEER names no criu binary")
	}
	target, images := startRing(t, "iouring"), t.TempDir()
	target.Dump(tools.Criu, images)
	if result := Run(t, tools.Peer, "restore", "-d", "-D", images, "-o", "peer.log", "-v4"); result.Code == 0 {
		t.Error("criu restored a set with an io_uring")
	} else if said := errorsOf(filepath.Join(images, "peer.log")); !strings.Contains(said, "Unable to restore") {
		t.Errorf("criu refused the set for another reason: %s", said)
	}
	target.Gone() // what criu had made of it
}
