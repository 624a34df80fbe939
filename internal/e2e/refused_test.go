package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefused holds things that cannot be dumped: a dump, dry or not, names each and leaves it alone.
func TestRefused(t *testing.T) {
	RequireRoot(t)
	for kind, want := range map[string]string{
		"urgent":    "with urgent data that have not been read",
		"mptcp":     "a connection of MPTCP",
		"corked":    "a corked UDP socket",
		"queued":    "messages that have not been read, which only the kernel can send",
		"ring":      "a part of the rings of a packet socket",
		"unlinked":  "has no name any more (mq_unlink)",
		"notified":  "(mq_notify)",
		"veth":      "network device veth0 (veth)",
		"handshake": "a userfaultfd that has not been told what it is for",
		"secret":    "secret memory (memfd_secret)",
		"ondemand":  "memory that a process outside of the tree provides on demand",
		"nested":    "is in another network namespace than the root of the tree",
	} {
		t.Run(kind, func(t *testing.T) {
			if kind == "mptcp" {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
				if err != nil {
					t.Skipf("no MPTCP here: %v", err)
				}
				unix.Close(fd)
			}
			if kind == "secret" {
				fd, err := unix.MemfdSecret(0)
				if err != nil {
					t.Skipf("no secret memory here: %v", err)
				}
				unix.Close(fd)
			}
			target, images := tools.StartWorkload(t, "refused", kind), t.TempDir()
			for _, extra := range []string{"--dry-run", "--leave-running"} {
				result := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "--tcp-established", extra)
				if result.Code == 0 || !strings.Contains(result.Stderr, want) {
					t.Errorf("dump %s: exit status %d, %s", extra, result.Code, result.Stderr)
				}
			}
			target.Go()
		})
	}
}

// TestMessageQueue dumps a task with a POSIX message queue, which is opened again by its path.
func TestMessageQueue(t *testing.T) {
	RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("mqueue", dir, "mqueue", 0, ""); err != nil {
		t.Skipf("no filesystem of message queues: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for name, pair := range map[string][2]string{
		"ours": {tools.Criu, tools.Criu}, "peer restores ours": {tools.Criu, tools.Peer},
	} {
		t.Run(name, func(t *testing.T) {
			if pair[1] == "" {
				t.Skip("CRIU_PEER names no criu binary")
			}
			target, images := tools.StartWorkload(t, "mqueue"), t.TempDir()
			t.Cleanup(func() { os.Remove(filepath.Join(dir, "cryo-workload-"+strconv.Itoa(target.Pid))) })
			target.Dump(pair[0], images)
			target.Restore(pair[1], images)
			target.Go()
		})
	}
}
