package remote

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

const testHole = 0x10000

// spawned runs f on a tracer's thread with a fresh restorer, which is killed afterwards.
func spawned(t testing.TB, o SpawnOptions, f func(*Session) error) {
	t.Helper()
	if err := trySpawned(t, o, f); err != nil {
		t.Fatal(err)
	}
}

// spawnedAt is spawned at the first of n free ids, which f has for its children. If somebody else takes one of them
// meanwhile it is tried again with others.
func spawnedAt(t testing.TB, n int, o SpawnOptions, f func(first int, s *Session) error) {
	t.Helper()
	for tries := 1; ; tries++ {
		first := freePID(t, n)
		o.TID = []int{first}
		err := trySpawned(t, o, func(s *Session) error { return f(first, s) })
		if err != nil && (!errors.Is(err, unix.EEXIST) || tries == 10) {
			t.Fatal(err)
		}
		if err == nil {
			return
		}
		t.Log("tried again: ", err)
	}
}

func trySpawned(t testing.TB, o SpawnOptions, f func(*Session) error) error {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to choose pids")
	}
	tr := ptrace.NewTracer()
	defer tr.Close()
	return tr.Do(func() error {
		if o.Hole.Start == 0 {
			o.Hole.Start = testHole
		}
		o.Hole.Size = HoleSize(o.Slots, o.SlotSize)
		start := time.Now()
		s, err := Spawn(o)
		if err != nil {
			return err
		}
		t.Logf("spawned in %v", time.Since(start))
		pid := s.Leader().Thread().TID
		defer ptrace.Kill(pid)
		return f(s)
	})
}

// freePID finds the first of n pids that nobody has, nor is about to get: they lie well ahead of those given out now.
func freePID(t testing.TB, n int) int {
	t.Helper()
	const lowest, ahead = 300, 4000
	last, most := sysctl(t, "ns_last_pid"), sysctl(t, "pid_max")
	for step := 0; step < most; step += n + 1 {
		pid := lowest + (last+ahead+step)%(most-lowest-n)
		used := false
		for i := range n {
			used = used || unix.Kill(pid+i, 0) != unix.ESRCH
		}
		if !used {
			return pid
		}
	}
	t.Skip("no run of free pids")
	return 0
}

// sysctl reads a number of /proc/sys/kernel.
func sysctl(t testing.TB, name string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/" + name)
	if err != nil {
		t.Skip("needs what the kernel says of pids: ", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSpawn(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    SpawnOptions
	}{
		{"exec", SpawnOptions{TID: []int{freePID(t, 1)}}},
		{"fork", SpawnOptions{TID: []int{freePID(t, 1)}, NoExec: true}},
		{"any pid", SpawnOptions{}},
		{"sibling", SpawnOptions{Flags: unix.CLONE_PARENT}},
		{"new pid namespace", SpawnOptions{TID: []int{1}, Flags: unix.CLONE_NEWPID}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spawned(t, tc.o, func(s *Session) error {
				b := NewBuilder("who am I")
				pid := b.Call(unix.SYS_GETPID).Must()
				res, err := s.Run(b.Program())
				if err != nil {
					return err
				}
				got, err := res.Value(pid)
				if len(tc.o.TID) > 0 && int(got) != tc.o.TID[0] {
					t.Errorf("pid %d, want %v", got, tc.o.TID)
				}
				maps, _ := os.ReadFile("/proc/" + itoa(s.Leader().Thread().TID) + "/maps")
				if n := strings.Count(string(maps), "\n"); n > 7 && !tc.o.NoExec {
					t.Errorf("%d mappings:\n%s", n, maps)
				}
				return err
			})
		})
	}
}

func TestCloneFamily(t *testing.T) {
	const n = 1000
	spawnedAt(t, n+1, SpawnOptions{}, func(first int, s *Session) error {
		var children []Child
		for i := range n {
			children = append(children, Child{TID: []int{first + 1 + i}})
		}
		start := time.Now()
		sessions, err := s.CloneAll(children)
		if err != nil {
			return err
		}
		t.Logf("%d children in %v", n, time.Since(start))
		start = time.Now()
		b := NewBuilder("die")
		b.Call(unix.SYS_GETPPID).Expect(uint64(first))
		p := b.Program()
		for _, c := range sessions {
			if err := c.Start(p); err != nil {
				return err
			}
		}
		for _, c := range sessions {
			if _, err := c.Finish(); err != nil {
				return err
			}
		}
		t.Logf("a program in each of them in %v", time.Since(start))
		for _, c := range sessions {
			pid := c.Leader().Thread().TID
			unix.Kill(pid, unix.SIGKILL)
			ptrace.Wait(pid)
		}
		return nil
	})
}

// TestThreadIDTaken wants an error, and a task that can be killed, where an id of a thread has been taken meanwhile.
func TestThreadIDTaken(t *testing.T) {
	const n = 5
	spawnedAt(t, n+1, SpawnOptions{}, func(first int, s *Session) error {
		ids := [][]int{{first + 1}, {first + 2}, {first + 3}, {first}, {first + 5}}
		_, err := s.CloneThreads(ids)
		if !errors.Is(err, unix.EEXIST) {
			t.Errorf("cloning a thread with an id that is taken: %v", err)
		}
		pid := s.Leader().Thread().TID
		if err := ptrace.Kill(pid); err != nil {
			return err
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("task %d is still there: %v", pid, err)
		}
		return nil
	})
}

func TestCloneThreads(t *testing.T) {
	const n = 1000
	spawnedAt(t, n+1, SpawnOptions{Slots: 8}, func(first int, s *Session) error {
		var ids [][]int
		for i := range n {
			ids = append(ids, []int{first + 1 + i})
		}
		start := time.Now()
		threads, err := s.CloneThreads(ids)
		if err != nil {
			return err
		}
		t.Logf("%d threads in %v", n, time.Since(start))
		start = time.Now()
		for i, th := range threads {
			b := NewBuilder("name the thread")
			b.Call(unix.SYS_GETTID).Expect(uint64(ids[i][0]))
			b.Call(unix.SYS_PRCTL, Imm(unix.PR_SET_NAME), b.String("thread "+itoa(i))).Must()
			if _, err := s.RunOn(th, b.Program()); err != nil {
				return err
			}
		}
		t.Logf("a program in each of them in %v", time.Since(start))
		comm, err := os.ReadFile("/proc/" + itoa(first) + "/task/" + itoa(first+n) + "/comm")
		if string(comm) != "thread 999\n" {
			t.Errorf("last thread is called %q, %v", comm, err)
		}
		return nil
	})
}

// TestLeave builds a task that does nothing but exit, and lets it go.
func TestLeave(t *testing.T) {
	spawned(t, SpawnOptions{}, func(s *Session) error {
		const at = 0x7000000
		b := NewBuilder("map the code")
		b.Call(unix.SYS_MMAP, Imm(at), Imm(4096), Imm(7), Imm(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED), Imm(-1), Imm(0)).Expect(at)
		code := arch.Code()[arch.SyscallOffset():][:4]
		b.Copy(Imm(at), b.Bytes(code), Imm(len(code)))
		if _, err := s.Run(b.Program()); err != nil {
			return err
		}
		if err := s.Remove(); err != nil {
			return err
		}
		th := s.Leader().Thread()
		th.Regs = th.Regs.SetupCall(at, unix.SYS_EXIT_GROUP, 42)
		if err := th.Restore(); err != nil {
			return err
		}
		if err := ptrace.Detach(th.TID, 0); err != nil {
			return err
		}
		st, err := ptrace.Wait(th.TID)
		if st.ExitStatus() != 42 {
			t.Errorf("%v", st)
		}
		return err
	})
}

// TestCloneIntoCgroup clones a child into a cgroup the parent is not in.
func TestCloneIntoCgroup(t *testing.T) {
	var fs unix.Statfs_t
	root := "/sys/fs/cgroup"
	if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		if root += "/unified"; unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			t.Skip("no cgroup2 hierarchy")
		}
	}
	dir, err := os.MkdirTemp(root, "remote-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.Remove(dir)
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	spawned(t, SpawnOptions{Cgroup: fd, Inherit: []int{fd}}, func(s *Session) error {
		child, err := s.Clone(Child{Cgroup: fd})
		if err != nil {
			return err
		}
		defer ptrace.Kill(child.Leader().Thread().TID)
		for _, pid := range []int{s.Leader().Thread().TID, child.Leader().Thread().TID} {
			got, _ := os.ReadFile("/proc/" + itoa(pid) + "/cgroup")
			if !strings.Contains(string(got), "/"+filepath.Base(dir)+"\n") {
				t.Errorf("task %d is in %s", pid, got)
			}
		}
		return nil
	})
}
