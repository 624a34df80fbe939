package dirty

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cryo/internal/procfs"
	"cryo/internal/selfexec"

	"golang.org/x/sys/unix"
)

// keeperName is the first argument of a keeper, by which it knows itself and others know it.
const keeperName = "criu-keeper"

// Descriptors of a keeper: its state, then a userfaultfd and a pidfd for each task.
const (
	stateFD = 3
	firstFD = 4
)

// keeperLife is how long nobody may come for a keeper.
const keeperLife = 24 * time.Hour

// maxState bounds the state of a keeper in bytes.
const maxState = 64 << 20

// Kept is what a keeper holds; it is the content of a memfd, so that whoever finds the keeper need not talk to it.
type Kept struct {
	// Set is the dump_criu_run_id of the set since which changes are followed.
	Set string
	// Root is the pid of the tree's root task.
	Root  int
	Tasks []KeptTask
}

// KeptTask is one address space. The pid is that of its task, as the tool sees it.
type KeptTask struct {
	Pid   int
	Start uint64 // start time in ticks since boot: pids are used again
	fd    int    // in the keeper
}

// KeeperMain makes this process a keeper, and does not return, if it was started as one; else it does nothing. Call it
// early in main.
func KeeperMain() {
	if !selfexec.Is(keeperName) {
		return
	}
	state, err := readState(fmt.Sprintf("/proc/self/fd/%d", stateFD))
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is started by criu itself, not by hand\n", keeperName)
		os.Exit(2)
	}
	selfexec.Become(keeperName, firstFD+2*len(state.Tasks)-1)
	await(len(state.Tasks))
	os.Exit(0)
}

// await returns when all tasks have ended or nobody came for too long. What belongs to a task that has ended is closed.
func await(tasks int) {
	poll := make([]unix.PollFd, tasks)
	for i := range poll {
		poll[i] = unix.PollFd{Fd: int32(firstFD + 2*i + 1), Events: unix.POLLIN}
	}
	end := time.Now().Add(keeperLife)
	for left := tasks; left > 0; {
		n, err := unix.Poll(poll, int(max(0, time.Until(end).Milliseconds()))) // less than 0 is for ever
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for i := range poll {
			if poll[i].Revents != 0 {
				unix.Close(firstFD + 2*i)
				unix.Close(firstFD + 2*i + 1)
				poll[i] = unix.PollFd{Fd: -1}
				left--
			}
		}
	}
}

// Keep starts a keeper that holds what the trackers of tasks have, which may be closed then. pidfds are those of the
// tasks. Only trackers by write protection have something to be held.
func Keep(k Kept, trackers []*Tracker, pidfds []int) error {
	fail := func(err error) error { return fmt.Errorf("keep the tracking of memory: %w", err) }
	text, err := json.Marshal(k)
	if err != nil {
		return fail(err)
	}
	memfd, err := unix.MemfdCreate(keeperName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fail(os.NewSyscallError("memfd_create", err))
	}
	state := os.NewFile(uintptr(memfd), keeperName)
	defer state.Close()
	if _, err := state.Write(text); err != nil {
		return fail(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd(), state.Fd()}
	for i, t := range trackers {
		files = append(files, uintptr(t.uffd.fd), uintptr(pidfds[i]))
	}
	pid, err := selfexec.Process{Name: keeperName, Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: files}.Start(selfexec.Path)
	if err != nil {
		return fail(err)
	}
	selfexec.Forget(pid)
	return nil
}

// Keeper is a process that holds trackers.
type Keeper struct {
	Kept
	pidfd int
}

// FindKeeper finds the keeper of the tree below task root; nil if there is none.
func FindKeeper(root int) (*Keeper, error) {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range names {
		if !isKeeper(dir) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		k, err := openKeeper(pid, root)
		if k != nil || err != nil {
			return k, err
		}
	}
	return nil, nil
}

// isKeeper says whether a process was started as a keeper, by its arguments. These are in its memory, and reading them may
// wait for a program that hangs in there, so its name goes first: a keeper has its own or, before it could take that, the
// one it was started by.
func isKeeper(dir string) bool {
	comm, err := os.ReadFile(dir + "/comm")
	if name := strings.TrimSpace(string(comm)); err != nil || name != keeperName && name != filepath.Base(selfexec.Path) {
		return false
	}
	text, err := os.ReadFile(dir + "/cmdline")
	return err == nil && string(text) == keeperName+"\x00"
}

// openKeeper looks at one process; nil if it is not what is looked for.
func openKeeper(pid, root int) (*Keeper, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, nil // it has ended
	}
	k := &Keeper{pidfd: pidfd}
	dir := fmt.Sprintf("/proc/%d", pid)
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || int(st.Uid) != os.Geteuid() {
		k.Close() // a name is no proof
		return nil, nil
	}
	k.Kept, err = readState(fmt.Sprintf("%s/fd/%d", dir, stateFD))
	if err != nil || k.Root != root {
		k.Close()
		return nil, nil
	}
	return k, nil
}

func readState(path string) (Kept, error) {
	var k Kept
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return k, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, maxState))
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	for i := range k.Tasks {
		k.Tasks[i].fd = firstFD + 2*i
	}
	return k, err
}

// Trackers takes the trackers of all tasks that are still the same, by pid.
func (k *Keeper) Trackers() map[int]*Tracker {
	all := map[int]*Tracker{}
	for _, t := range k.Tasks {
		if !t.alive() {
			continue
		}
		fd, err := unix.PidfdGetfd(k.pidfd, t.fd, 0)
		if err != nil {
			continue
		}
		all[t.Pid] = &Tracker{t.Pid, false, uffd{fd}}
	}
	return all
}

func (t KeptTask) alive() bool {
	dir, err := procfs.OpenTask(t.Pid)
	if err != nil {
		return false
	}
	defer dir.Close()
	stat, err := dir.Stat()
	return err == nil && stat.StartTime == t.Start
}

// End ends the keeper and waits until it has let go of everything.
func (k *Keeper) End() error {
	err := unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the keeper of memory tracking: %w", err)
	}
	poll := []unix.PollFd{{Fd: int32(k.pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != unix.EINTR {
			return err
		}
	}
}

// Close forgets the keeper, which goes on.
func (k *Keeper) Close() { unix.Close(k.pidfd) }
