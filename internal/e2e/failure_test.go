package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// killRounds is how often the tool is killed at a random instant; CRYO_KILLS
// asks for more than a test run has time for.
func killRounds(fallback int) int {
	if n, err := strconv.Atoi(os.Getenv("CRYO_KILLS")); err == nil {
		return n
	}
	return fallback
}

// killAt runs a command and kills it after a delay; it says whether the
// command was still running then.
func killAt(t *testing.T, delay time.Duration, argv ...string) (killed bool) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &stderr, time.Second // a guardian may hold it open for longer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(delay, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	timer.Stop()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && !status.Signaled() {
		t.Fatalf("%s: %v, stderr %s", strings.Join(argv, " "), err, stderr.String())
	}
	return !cmd.ProcessState.Exited()
}

// traces is what a tool must not leave behind in a task.
func traces(pid int) string {
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	var kept []string
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		kept = append(kept, fields[0]+" "+fields[1]+" "+strings.Join(fields[5:], " "))
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, fd := range fds {
		kept = append(kept, "fd "+fd.Name())
	}
	for _, child := range childrenOf(pid) {
		kept = append(kept, fmt.Sprint("child ", child))
	}
	return strings.Join(kept, "\n")
}

// statusField is a field of /proc/PID/status.
func statusField(pid int, name string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range bytes.Lines(b) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// untouched waits until nothing of a dead tool is left in the tree: no tracer,
// no stop, no mapping, no descriptor.
func (target *Target) untouched(before map[int]string, logs ...string) {
	target.t.Helper()
	defer func() {
		if target.t.Failed() && len(logs) > 0 {
			log, _ := os.ReadFile(logs[len(logs)-1])
			target.t.Logf("verdict %q, stderr %s, the last log:\n%s", target.read("verdict"), target.read("stderr"), log)
		}
	}()
	for pid, want := range before {
		defer func() {
			if target.t.Failed() {
				target.t.Logf("pid %d, state %s, tracer %s, differs in:\n%s", pid, statusField(pid, "State"), statusField(pid, "TracerPid"), cmp.Diff(want, traces(pid)))
			}
		}()
		target.await(fmt.Sprintf("pid %d free of the tool", pid), func() bool {
			state := statusField(pid, "State")
			return statusField(pid, "TracerPid") == "0" && state != "" && !strings.ContainsAny(state[:1], "tTZX") && traces(pid) == want
		})
	}
}

// TestKilledDump kills the tool at random instants of a dump that leaves the
// target running: the target never notices, and what looks like a set is one.
func TestKilledDump(t *testing.T) {
	RequireRoot(t)
	for _, w := range []struct {
		name string
		args []string
	}{{"threads", []string{"6"}}, {"memory", nil}, {"instant", []string{"16", "2"}}, {"ring", []string{"12"}}, {"unix", nil}, {"userfaults", nil}, {"sharedmm", nil}} {
		t.Run(w.name, func(t *testing.T) {
			target := tools.StartWorkload(t, w.name, w.args...)
			whole := target.Dump(tools.Criu, t.TempDir(), "--leave-running").Wall
			before := map[int]string{}
			for _, pid := range target.Tree() {
				before[pid] = traces(pid)
			}
			target.untouched(before)
			killed, sets := 0, 0
			var logs []string
			rounds := killRounds(20)
			for n := 0; n < rounds || n < 10*rounds && !guardianSpoke(logs); n++ { // at most instants there may be nothing to take back
				images := t.TempDir()
				logs = append(logs, filepath.Join(images, "dump.log"))
				delay := time.Duration(rand.Int64N(int64(whole + whole/4)))
				if killAt(t, delay, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "--leave-running") {
					killed++
				}
				target.untouched(before, logs...)
				if inventory := filepath.Join(images, "inventory.img"); exists(inventory) {
					r := Run(t, tools.Crit, "decode", "-i", filepath.Join(images, "pstree.img"))
					if r.Code == 0 {
						sets++
						continue
					}
					target.await("end of a set that is not whole: "+r.Stderr, func() bool { return !exists(inventory) })
				}
			}
			t.Logf("killed %d dumps that take %v; %d had their whole set", killed, whole, sets)
			if !guardianSpoke(logs) {
				t.Error("no word of what a guardian took back in the log of any dump that was killed")
			}
			target.Dump(tools.Criu, t.TempDir(), "--leave-running")
			target.Go()
		})
	}
}

// guardianSpoke says whether a guardian has told in one of the logs of what it took back.
func guardianSpoke(logs []string) bool {
	return slices.ContainsFunc(logs, func(log string) bool {
		b, err := os.ReadFile(log)
		return err == nil && bytes.Contains(b, []byte("criu-guardian: "))
	})
}

// TestKilledPreDump kills the tool at random instants of pre-dumps, each on top of the last whole set: the tasks go on
// unharmed, and a dump on top of the last set is right.
func TestKilledPreDump(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "writer", "2")
	c := newChain(t, target)
	begin := time.Now()
	c.PreDump()
	whole, killed := time.Since(begin), 0
	for range killRounds(20) {
		images, options := c.next()
		delay := time.Duration(rand.Int64N(int64(whole + whole/4)))
		argv := append([]string{tools.Criu, "pre-dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log"}, options...)
		if killAt(t, delay, argv...) {
			killed++
		}
		target.await("end of the guardian's work", func() bool { return !guardians() })
		target.await("end of the tool's userfaultfds, also in children forked before the guardian came", func() bool {
			return !slices.ContainsFunc(target.Tree(), func(pid int) bool {
				return slices.Contains(descriptors(pid), "anon_inode:[userfaultfd]")
			})
		})
		if _, err := os.Stat(filepath.Join(images, "inventory.img")); err != nil {
			os.RemoveAll(images)
			c.sets--
		}
	}
	t.Logf("killed %d pre-dumps that take %v; %d have their whole set", killed, whole, c.sets-1)
	target.Restore(tools.Criu, c.Dump())
	target.Go()
}

// TestDumpsAtOnce starts several dumps of one tree at the same time: each waits for the one before it.
func TestDumpsAtOnce(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "ring", "4")
	var all sync.WaitGroup
	for range 4 {
		images := t.TempDir()
		all.Go(func() {
			r := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "-v4", "--leave-running")
			if r.Code != 0 {
				t.Errorf("exit status %d: %s", r.Code, r.Stderr)
			}
		})
	}
	all.Wait()
	target.Go()
}

// descriptors are what a task has open.
func descriptors(pid int) (targets []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		target, _ := os.Readlink(link)
		targets = append(targets, target)
	}
	return targets
}

// TestKilledRestore kills the tool at random instants of a restore: there is
// the whole tree or no task of it, and the next restore works.
func TestKilledRestore(t *testing.T) {
	RequireRoot(t)
	for _, w := range []struct {
		name string
		args []string
	}{{"threads", []string{"6"}}, {"files", nil}, {"ring", []string{"12"}}, {"unix", nil}, {"sysv", nil}} {
		t.Run(w.name, func(t *testing.T) {
			target, images := tools.StartWorkload(t, w.name, w.args...), t.TempDir()
			segments := segmentsOf(target.Pid)
			target.Dump(tools.Criu, images)
			tree := target.tree
			removeSegments(segments)
			whole := target.Restore(tools.Criu, images).Wall
			target.Kill()
			target.Gone()
			removeSegments(segments)
			killed, restored := 0, 0
			for range killRounds(12) {
				delay := time.Duration(rand.Int64N(int64(whole + whole/4)))
				if killAt(t, delay, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4") {
					killed++
				}
				if target.settled(tree) {
					restored++
				} else if !eventually(func() bool { return !anySegment(segments) }) {
					log, _ := os.ReadFile(filepath.Join(images, "restore.log"))
					t.Fatalf("SysV segments %v are still there; log: %s", segments, log)
				}
				target.tree = tree
				target.Kill()
				target.Gone()
				removeSegments(segments)
			}
			t.Logf("killed %d restores that take %v; %d were whole", killed, whole, restored)
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// eventually waits until something is done.
func eventually(done func() bool) bool {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// segmentsOf lists the SysV segments a process has made.
func segmentsOf(pid int) (ids []int) {
	list, _ := os.ReadFile("/proc/sysvipc/shm")
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == strconv.Itoa(pid) {
			if id, err := strconv.Atoi(fields[1]); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func anySegment(ids []int) bool {
	return slices.ContainsFunc(ids, func(id int) bool {
		_, err := unix.SysvShmCtl(id, unix.IPC_STAT, new(unix.SysvShmDesc))
		return err == nil
	})
}

func removeSegments(ids []int) {
	for _, id := range ids {
		unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
}

// settled waits until a tree whose restorer died is whole and untraced, or gone.
func (target *Target) settled(tree []int) (whole bool) {
	target.t.Helper()
	target.await("tree that is whole or gone", func() bool {
		reapOrphans()
		there := 0
		for _, pid := range tree {
			switch {
			case !alive(pid) || !ours(pid):
			case statusField(pid, "TracerPid") == "0":
				there++
			default:
				return false
			}
		}
		whole = there == len(tree)
		return there == 0 || whole
	})
	return whole
}

// TestBadInput wants one line that says what, which and what to do, and
// nothing lost and nothing left.
func TestBadInput(t *testing.T) {
	RequireRoot(t)
	set := func(t *testing.T) (*Target, string) {
		target, images := tools.StartWorkload(t, "files"), t.TempDir()
		target.Dump(tools.Criu, images)
		return target, images
	}
	restore := func(images string) []string {
		return []string{tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log"}
	}
	for _, c := range []struct {
		name string
		argv func(t *testing.T) []string
		want []string // parts of the last line on stderr
	}{
		{"no such pid", func(t *testing.T) []string {
			return []string{tools.Criu, "dump", "-t", "4194000", "-D", t.TempDir(), "-o", "dump.log"}
		}, []string{"4194000"}},
		{"no images directory", func(t *testing.T) []string {
			return []string{tools.Criu, "dump", "-t", "1", "-D", "/nonexistent/images"}
		}, []string{"/nonexistent/images"}},
		{"the tool itself", func(t *testing.T) []string {
			return []string{"/bin/sh", "-c", tools.Criu + " dump -t $$ -j -D " + t.TempDir() + " -o dump.log; exit $?"}
		}, []string{"itself"}},
		{"no inventory", func(t *testing.T) []string {
			_, images := set(t)
			os.Remove(filepath.Join(images, "inventory.img"))
			return restore(images)
		}, []string{"inventory.img"}},
		{"truncated core", func(t *testing.T) []string {
			_, images := set(t)
			shorten(t, images, "core-*.img")
			return restore(images)
		}, []string{"core-"}},
		{"truncated pages", func(t *testing.T) []string {
			_, images := set(t)
			shorten(t, images, "pages-*.img")
			return restore(images)
		}, []string{"pages-"}},
		{"foreign image", func(t *testing.T) []string {
			_, images := set(t)
			os.WriteFile(filepath.Join(images, "pstree.img"), []byte("GIF89a, not an image of ours"), 0o600)
			return restore(images)
		}, []string{"pstree.img"}},
		{"changed file", func(t *testing.T) []string {
			target, images := set(t)
			os.WriteFile(filepath.Join(target.Dir, "data"), []byte("not ten bytes"), 0o600)
			return restore(images)
		}, []string{"data", "10", "13"}},
		{"missing file", func(t *testing.T) []string {
			target, images := set(t)
			os.Remove(filepath.Join(target.Dir, "data"))
			return restore(images)
		}, []string{"data"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			result := Run(t, c.argv(t)...)
			if result.Code == 0 {
				t.Fatal("it succeeded")
			}
			lines := strings.Split(strings.TrimSpace(result.Stderr), "\n")
			last := lines[len(lines)-1]
			for _, part := range c.want {
				if !strings.Contains(last, part) {
					t.Errorf("the last line on stderr does not name %q: %s", part, last)
				}
			}
		})
	}
}

// shorten cuts the second half off a file.
func shorten(t *testing.T, images, pattern string) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(images, pattern))
	if len(names) == 0 {
		t.Fatalf("no %s in the set", pattern)
	}
	st, err := os.Stat(names[0])
	if err == nil {
		err = os.Truncate(names[0], st.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPidTaken restores while the pid is still there.
func TestPidTaken(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "idle"), t.TempDir()
	target.Dump(tools.Criu, images, "--leave-running")
	result := Run(t, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log")
	if result.Code == 0 || !strings.Contains(result.Stderr, strconv.Itoa(target.Pid)) {
		t.Fatalf("exit status %d, stderr %s", result.Code, result.Stderr)
	}
	target.Go()
}

// TestDiskFull dumps to a filesystem that is too small: one line names the
// cause, no set is left, the target goes on.
func TestDiskFull(t *testing.T) {
	RequireRoot(t)
	images := t.TempDir()
	if err := unix.Mount("small", images, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	defer unix.Unmount(images, unix.MNT_DETACH)
	target := tools.StartWorkload(t, "memory")
	result := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log")
	if result.Code == 0 || !strings.Contains(result.Stderr, "no space left") {
		t.Fatalf("exit status %d, stderr %s", result.Code, result.Stderr)
	}
	left, _ := filepath.Glob(filepath.Join(images, "*.img"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	target.Go()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
