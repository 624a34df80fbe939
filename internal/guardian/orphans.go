package guardian

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// AwaitOrphans waits until the guardians whose wards have died have taken back what those did, but not longer than bound. It
// says whether there were any. It reads all of /proc: ask where something is in the way that they may be about to remove.
func AwaitOrphans(ctx context.Context, bound time.Duration) (any bool) {
	for pause, end := time.Millisecond, time.Now().Add(bound); orphans(); pause = min(2*pause, 20*time.Millisecond) {
		any = true
		if ctx.Err() != nil || time.Now().After(end) {
			break
		}
		time.Sleep(pause)
	}
	return any
}

// orphans says whether there is a guardian, or the sentry of one, whose ward has died.
func orphans() bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && Is(pid) && orphaned(pid) {
			return true
		}
	}
	return false
}

// orphaned says whether the ward of a guardian has died, by the pidfd that the guardian has of it.
func orphaned(pid int) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, wardFD))
	if err != nil {
		return false // it has just ended, or closed it
	}
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		if key != "Pid" {
			continue
		}
		ward := strings.TrimSpace(value)
		stat, err := os.ReadFile("/proc/" + ward + "/stat") // a pidfd of a zombie still has its number
		return err != nil || strings.Contains(string(stat), ") Z ")
	}
	return false
}
