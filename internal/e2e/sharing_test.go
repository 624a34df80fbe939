package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestSharingStays takes snapshots and pre-dumps of forked tasks: the pages they share stay shared, or each snapshot would cost
// as much memory as they all have together.
func TestSharingStays(t *testing.T) {
	RequireRoot(t)
	for _, verb := range [][]string{{"dump", "--leave-running"}, {"pre-dump"}} {
		t.Run(verb[0], func(t *testing.T) {
			target := tools.StartWorkload(t, "cow", "32", "8")
			before := target.private()
			Must(t, "", append([]string{tools.Criu, verb[0], "-t", strconv.Itoa(target.Pid), "-D", t.TempDir(), "-o", "dump.log"}, verb[1:]...)...)
			if grown := target.private() - before; grown > 4<<10 {
				t.Errorf("the tasks have %d KiB more for themselves, besides %d", grown, before)
			}
			target.Go()
		})
	}
}

// private is how many KiB of memory the tasks of a tree have each for itself.
func (target *Target) private() (kib int) {
	target.t.Helper()
	for _, pid := range target.Tree() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			target.t.Skip("no smaps_rollup: ", err)
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); strings.HasPrefix(f[0], "Private_") {
				n, _ := strconv.Atoi(f[1])
				kib += n
			}
		}
	}
	return kib
}
