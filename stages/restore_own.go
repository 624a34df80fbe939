package stages

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/internal/image"
)

// OwnIDError says that a thread of this process has an id that a set wants for itself, and so nothing has been done yet. A
// process that only restores may execute itself again: it keeps its own pid, all its threads get new ids, and those to be
// given out next have been moved away from the set's.
type OwnIDError struct{ ID int }

func (e *OwnIDError) Error() string {
	return fmt.Sprintf("id %d of the set is that of a thread of this process: restore it by another one", e.ID)
}

// idRoom is how many ids this process, its guardian and what scripts start may need while a set is restored.
const idRoom = 1000

// ownIDs makes sure that this process does not take an id of the set, itself or by what it starts. That is for sets in a
// directory: others can be read only once.
func (r *restorer) ownIDs() error {
	if _, ok := r.source.(*image.Dir); !ok {
		return nil
	}
	ids := map[int]bool{}
	for e, err := range image.Entries(r.source, image.Pstree, 0) {
		if err != nil {
			return nil // who reads the set tells it
		}
		for _, id := range append(e.GetThreads(), e.GetPid(), e.GetPgid(), e.GetSid()) {
			ids[int(id)] = true
		}
	}
	if ids[1] { // an init, which has a pid namespace of its own
		return nil
	}
	if r.moveNextID(ids) {
		// A thread that is being made has an id that nobody can see yet. This call waits for all of them, as it is made by
		// each; without them (ENOTSUP where there is C in the process) an accident is possible but rare.
		syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, t := range threads {
		// The id of the process itself stays; the plan refuses it by name.
		if id, err := strconv.Atoi(t.Name()); err == nil && ids[id] && id != os.Getpid() {
			return &OwnIDError{id}
		}
	}
	return nil
}

// lastPID holds the id that was given out last; those after it come next. It may be written with CAP_SYS_ADMIN or
// CAP_CHECKPOINT_RESTORE.
const lastPID = "/proc/sys/kernel/ns_last_pid"

// moveNextID makes the kernel go on behind the ids of the set where it is about to give them out, or has just done so. It says
// whether that is the case; where the kernel does not let us, an accident is possible but rare.
func (r *restorer) moveNextID(ids map[int]bool) bool {
	last, err := readNumber(lastPID)
	if err != nil {
		return false
	}
	most, err := readNumber("/proc/sys/kernel/pid_max")
	if err != nil {
		return false
	}
	to := nextIDs(last, most, ids)
	if to == last {
		return ids[last]
	}
	if err := os.WriteFile(lastPID, []byte(strconv.Itoa(to)), 0); err != nil {
		r.log.Info("The next process ids are some of the set and cannot be moved", "last", last, "err", err)
	} else {
		r.log.Debug("Moved the next process id away from those of the set", "from", last, "to", to)
	}
	return true
}

// nextIDs is the last id to go on from, so that the next idRoom ones are none of ids: last itself if that is so there.
func nextIDs(last, most int, ids map[int]bool) int {
	sorted := slices.Sorted(maps.Keys(ids))
	free := func(from int) bool { // the ids behind from
		i, _ := slices.BinarySearch(sorted, from+1)
		next := most // and then from the beginning
		if i < len(sorted) {
			next = sorted[i]
		}
		return next > from+idRoom
	}
	ahead, _ := slices.BinarySearch(sorted, last)
	for _, from := range slices.Concat([]int{last}, sorted[ahead:], []int{reserved}, sorted[:ahead]) {
		if from >= min(last, reserved) && free(from) {
			return from
		}
	}
	return last
}

// reserved is where the kernel begins again when it has given out all ids: those below are for daemons.
const reserved = 300

// readNumber reads a file with one number.
func readNumber(name string) (int, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
