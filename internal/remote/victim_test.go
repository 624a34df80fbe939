package remote

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/internal/ptrace"
)

// TestMain also is the tool that is killed in TestTracerDies.
func TestMain(m *testing.M) {
	switch mode := os.Getenv("REMOTE_TEST_DOOMED"); mode {
	case "":
	case "modest":
		modest()
	default:
		doomed(mode)
	}
	code := m.Run()
	if victimDir != "" {
		os.RemoveAll(victimDir)
	}
	os.Exit(code)
}

var victimDir string

var victimBinary = sync.OnceValues(func() (string, error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", fmt.Errorf("no C compiler to build the victim with")
	}
	if victimDir, err = os.MkdirTemp("", "victim"); err != nil {
		return "", err
	}
	bin := filepath.Join(victimDir, "victim")
	if out, err := exec.Command(gcc, "-O1", "-pthread", "-o", bin, "testdata/victim.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %s", err, out)
	}
	return bin, nil
})

// victim is a running testdata/victim.c.
type victim struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr strings.Builder
	pid    int
}

func startVictim(t testing.TB, mode string) *victim {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to trace other processes")
	}
	bin, err := victimBinary()
	if err != nil {
		t.Skip(err)
	}
	v := &victim{cmd: exec.Command(bin, mode)}
	v.cmd.Stderr = &v.stderr
	v.stdin, _ = v.cmd.StdinPipe()
	out, _ := v.cmd.StdoutPipe()
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.cmd.Process.Kill(); v.cmd.Wait() })
	v.pid = v.cmd.Process.Pid
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		v.cmd.Wait()
		if v.cmd.ProcessState.ExitCode() == 77 {
			t.Skipf("this kernel does not know %s", mode)
		}
		t.Fatalf("victim: %q, %v, %s", line, err, v.stderr.String())
	}
	return v
}

// ends closes the victim's standard input and wants it to end well.
func (v *victim) ends(t testing.TB) {
	t.Helper()
	v.stdin.Close()
	watchdog := time.AfterFunc(time.Minute, func() { v.cmd.Process.Kill() })
	defer watchdog.Stop()
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("the victim was harmed: %v %s", err, v.stderr.String())
	}
}

// TestHarmless runs programs in tasks again and again and lets them verify that they noticed nothing.
func TestHarmless(t *testing.T) {
	for _, tc := range []struct {
		mode   string
		rounds int
		o      Options
	}{
		{"registers", 50, Options{}},
		{"registers", 20, Options{Breakpoints: true}},
		{"nanosleep", 20, Options{}},
		{"futex", 20, Options{}},
		{"poll", 20, Options{}},
		{"read", 20, Options{}},
		{"filter", 20, Options{}},
		{"strict", 20, Options{}},
		{"handlers", 20, Options{}},
		{"golike", 20, Options{}},
		{"ignore", 20, Options{}},
		{"mdwe", 5, Options{}},
		{"dispatch", 20, Options{}},
	} {
		t.Run(fmt.Sprintf("%s breakpoints=%v", tc.mode, tc.o.Breakpoints), func(t *testing.T) {
			t.Parallel()
			v := startVictim(t, tc.mode)
			prog, _, getpid := collectProgram()
			for range tc.rounds {
				seized(t, v.pid, func(th *Thread) {
					s, err := Inject(th, tc.o)
					if err != nil {
						t.Error(err)
						return
					}
					res, err := s.Run(prog)
					if err != nil {
						t.Error(err)
					} else if pid, _ := res.Value(getpid); int(pid) != v.pid {
						t.Errorf("getpid says %d", pid)
					}
					if err := s.Eject(); err != nil {
						t.Error(err)
					}
				})
				time.Sleep(3 * time.Millisecond) // let it go on for a while
			}
			v.ends(t)
		})
	}
}

// TestThreads runs a program on every thread of a task, one after the other and all at once.
func TestThreads(t *testing.T) {
	v := startVictim(t, "threads")
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", v.pid))
	if err != nil {
		t.Fatal(err)
	}
	var tids []int
	for _, e := range entries {
		var tid int
		fmt.Sscan(e.Name(), &tid)
		tids = append(tids, tid)
	}
	b := NewBuilder("thread id")
	gettid := b.Call(unix.SYS_GETTID)
	prog := b.Program()
	tr := ptrace.NewTracer()
	defer tr.Close()
	check := func(th *Thread, res *Results, err error) {
		if err != nil {
			t.Error(err)
		} else if got, err := res.Value(gettid); int(got) != th.TID {
			t.Errorf("thread %d says it is %d, %v", th.TID, got, err)
		}
	}
	err = tr.Do(func() error {
		var threads []*Thread
		for _, tid := range tids {
			th, err := hold(tid)
			if err != nil {
				return err
			}
			threads = append(threads, th)
		}
		s, err := Inject(threads[0], Options{Slots: len(threads), SlotSize: 1024})
		if err != nil {
			return err
		}
		for _, th := range threads {
			res, err := s.RunOn(th, prog)
			check(th, res, err)
		}
		slots := []*Slot{s.Leader()}
		for _, th := range threads[1:] {
			sl, err := s.Enter(th)
			if err != nil {
				return err
			}
			slots = append(slots, sl)
		}
		if _, err := s.Enter(threads[0]); err != ErrNoSlot {
			t.Errorf("one slot too many: %v", err)
		}
		for _, sl := range slots {
			if err := sl.Start(prog); err != nil {
				return err
			}
		}
		for _, sl := range slots {
			res, err := sl.Finish()
			check(sl.Thread(), res, err)
		}
		for _, sl := range slots[1:] {
			if err := sl.Leave(); err != nil {
				return err
			}
		}
		if err := s.Eject(); err != nil {
			return err
		}
		for _, th := range threads {
			if err := ptrace.Detach(th.TID, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	v.ends(t)
}

// TestStopped runs a program in a task that is in a group-stop, and stops one while a program runs.
func TestStopped(t *testing.T) {
	v := startVictim(t, "read")
	waitState := func(want byte) {
		t.Helper()
		for range 2000 {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.pid))
			if i := strings.LastIndexByte(string(stat), ')'); i > 0 && stat[i+2] == want {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatalf("process %d does not get into state %c", v.pid, want)
	}
	run := func(stopWithin bool) {
		seized(t, v.pid, func(th *Thread) {
			s, err := Inject(th, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			b := NewBuilder("stop oneself")
			if stopWithin {
				pid := b.Call(unix.SYS_GETPID)
				b.Call(unix.SYS_KILL, pid, Imm(unix.SIGSTOP)).Must()
			}
			b.Call(unix.SYS_GETPID).Expect(uint64(v.pid))
			if _, err := s.Run(b.Program()); err != nil {
				t.Error(err)
			}
			if err := s.Eject(); err != nil {
				t.Error(err)
			}
		})
	}
	unix.Kill(v.pid, syscall.SIGSTOP)
	waitState('T')
	run(false)
	waitState('T')
	unix.Kill(v.pid, syscall.SIGCONT)
	waitState('S')
	run(true)
	waitState('T')
	unix.Kill(v.pid, syscall.SIGCONT)
	v.ends(t)
}

// modest is a tool without root's privileges that spawns a task and prints that task's effective capabilities.
func modest() {
	tr := ptrace.NewTracer()
	err := tr.Do(func() error {
		s, err := Spawn(SpawnOptions{Hole: Area{testHole, HoleSize(0, 0)}})
		if err != nil {
			return err
		}
		pid := s.Leader().Thread().TID
		defer ptrace.Kill(pid)
		st, err := readStatus(pid)
		if err == nil {
			fmt.Printf("%x", st.CapEff)
		}
		return err
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestSpawnKeepsCapabilities checks that a tool which is not root, but has capabilities, hands them to its tasks.
func TestSpawnKeepsCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	exe := filepath.Join(t.TempDir(), "tool") // the test binary may lie where others cannot read
	if err := exec.Command("cp", "--", fmt.Sprintf("/proc/%d/exe", os.Getpid()), exe).Run(); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(exe); dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "REMOTE_TEST_DOOMED=modest")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_CHECKPOINT_RESTORE},
	}
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("%x", 1<<unix.CAP_SYS_PTRACE|1<<unix.CAP_CHECKPOINT_RESTORE); err != nil || string(out) != want {
		t.Errorf("capabilities %s, want %s, %v", out, want, err)
	}
}

// doomed is a tool that dies with its program half done in a task.
func doomed(mode string) {
	var pid int
	fmt.Sscan(os.Getenv("REMOTE_TEST_PID"), &pid)
	tr := ptrace.NewTracer()
	err := tr.Do(func() error {
		th, err := hold(pid)
		if err != nil {
			return err
		}
		s, err := Inject(th, Options{})
		if err != nil {
			return err
		}
		if !s.CrashSafe() {
			return fmt.Errorf("not crash safe")
		}
		b := NewBuilder("sleep")
		ts := make([]byte, 16)
		le.PutUint64(ts[8:], 50e6)
		b.Call(unix.SYS_NANOSLEEP, b.Bytes(ts), Imm(0))
		if mode == "failing" {
			b.Call(unix.SYS_CLOSE, Imm(-1)).Must()
		}
		b.Call(unix.SYS_GETPID)
		if mode == "before" {
			os.Exit(42)
		}
		if err := s.Start(b.Program()); err != nil {
			return err
		}
		if mode == "after" {
			if _, err := s.Finish(); err != nil {
				return err
			}
		}
		os.Exit(42)
		return nil
	})
	fmt.Println(err)
	os.Exit(1)
}

// TestTracerDies kills the tool at different moments; the task has to go on by itself.
func TestTracerDies(t *testing.T) {
	for _, mode := range []string{"before", "during", "failing", "after"} {
		kinds := []string{"registers", "nanosleep", "futex", "poll", "read", "golike"}
		if mode == "before" || mode == "after" { // seccomp allows the return, not what a program does
			kinds = append(kinds, "filter", "strict")
		}
		for _, kind := range kinds {
			t.Run(mode+" "+kind, func(t *testing.T) {
				t.Parallel()
				v := startVictim(t, kind)
				for range 3 {
					cmd := exec.Command("/proc/self/exe")
					cmd.Env = append(os.Environ(), "REMOTE_TEST_DOOMED="+mode, fmt.Sprintf("REMOTE_TEST_PID=%d", v.pid))
					out, _ := cmd.CombinedOutput()
					if cmd.ProcessState.ExitCode() != 42 {
						t.Fatalf("the doomed tool failed: %s", out)
					}
					time.Sleep(60 * time.Millisecond) // the program goes on without its tracer
				}
				v.ends(t)
			})
		}
	}
}
