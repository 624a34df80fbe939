package e2e

import (
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"cryo/internal/nsenter"

	"github.com/google/nftables"
)

// locksOf lists the locks in the network namespace of a task.
func locksOf(t testing.TB, pid int) (names []string) {
	t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if strings.HasPrefix(table.Name, "CRIU-") {
			names = append(names, table.Name)
		}
	}
	return names
}

// TestKilledDumpOfNetNS kills the tool at random instants: a network namespace never stays locked.
func TestKilledDumpOfNetNS(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "netns")
	options := []string{"--leave-running", "--tcp-established"}
	whole := target.Dump(tools.Criu, t.TempDir(), options...).Wall
	killed := 0
	for range killRounds(12) {
		delay := time.Duration(mathrand.Int64N(int64(whole + whole/4)))
		if killAt(t, delay, append([]string{tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", t.TempDir(), "-o", "dump.log"}, options...)...) {
			killed++
		}
		target.await("network namespace without a lock", func() bool {
			return len(locksOf(t, target.Pid)) == 0 && len(inRepair(t, target.Pid)) == 0
		})
	}
	t.Logf("killed %d dumps that take %v", killed, whole)
	target.Go()
}

// TestJoinNet restores into a network namespace that there is: the one the tree was dumped from, which is locked meanwhile.
func TestJoinNet(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "netns"), t.TempDir()
	ns, err := nsenter.OtherNet(target.Pid)
	if err != nil || ns == nil {
		t.Fatalf("the workload is in no network namespace of its own: %v", err)
	}
	defer ns.Close()
	target.Dump(tools.Criu, images, "--tcp-established")
	target.Restore(tools.Criu, images, "--tcp-established", "--join-ns", fmt.Sprintf("net:/proc/%d/fd/%d", os.Getpid(), ns.Fd()))
	if left := locksOf(t, target.Pid); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	target.Go()
}
