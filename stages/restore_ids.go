package stages

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// reapTime is how long a dead task may keep its id: its parent, or init after that one's death, collects it, most do so
// in a moment. There are inits in containers and small machines that look every few seconds only.
const reapTime = 10 * time.Second

// reapPause is the longest time between two looks.
const reapPause = 100 * time.Millisecond

// taken refuses an id that a task or thread of the system has. A dump ends its tasks from outside: those whose parent
// it ended as well are init's to collect, which may be under way yet when a restore follows at once.
func taken(id int, what string) error {
	for wait, end := time.Millisecond, time.Now().Add(reapTime); ; wait = min(2*wait, reapPause) {
		who, dead := holder(id)
		switch {
		case who == "":
			return nil
		case own(id):
			return fmt.Errorf("%s %d cannot be made: that id is one of this process itself: start it again", what, id)
		case !dead:
			return numbered(unix.EEXIST, "%s %d cannot be made: that id is taken by %s: wait until it ends, or restore in a pid namespace", what, id, who)
		case time.Now().After(end):
			return numbered(unix.EEXIST, "%s %d cannot be made: that id is taken by %s, which is dead but not collected by its parent: end that one", what, id, who)
		}
		time.Sleep(wait)
	}
}

// own says whether an id is that of a thread of this process.
func own(id int) bool {
	_, err := os.Lstat(fmt.Sprintf("/proc/self/task/%d", id))
	return err == nil
}

// holder names the task that has an id, empty if there is none, and says whether it is dead.
func holder(id int) (who string, dead bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	if err != nil {
		return "", false
	}
	st, err := procfs.ParseStat("stat", text)
	if err != nil {
		return "another task", false
	}
	return fmt.Sprintf("%q", st.Comm), strings.ContainsRune("ZX", rune(st.State))
}

// sparePID finds a pid nobody has in the tree's namespace: high ones are given out last.
func (p *restorePlan) sparePID(taken func(int) bool) (int, error) {
	most, err := readNumber("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0, err
	}
	for pid := most - 1; pid > 300; pid-- {
		if taken(pid) {
			continue
		}
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d", pid)); err != nil || p.pids.New {
			return pid, nil
		}
	}
	return 0, errors.New("no pid is free")
}
