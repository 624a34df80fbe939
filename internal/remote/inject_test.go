package remote

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/internal/ptrace"
)

// target starts a process that is killed at the end of the test, and waits until its main thread sleeps.
func target(t testing.TB, name string, args ...string) int {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to trace other processes")
	}
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	waitAsleep(t, cmd.Process.Pid)
	return cmd.Process.Pid
}

// sleeping are the system calls test programs come to rest in.
var sleeping = map[int]bool{unix.SYS_CLOCK_NANOSLEEP: true, unix.SYS_NANOSLEEP: true, unix.SYS_FUTEX: true,
	unix.SYS_PPOLL: true, unix.SYS_RT_SIGSUSPEND: true, unix.SYS_READ: true, unix.SYS_RT_SIGTIMEDWAIT: true, unix.SYS_RESTART_SYSCALL: true}

func waitAsleep(t testing.TB, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		st, err := os.ReadFile("/proc/" + itoa(pid) + "/syscall")
		var nr int
		if n, _ := fmt.Sscan(string(st), &nr); err == nil && n == 1 && sleeping[nr] {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("process %d does not come to rest", pid)
}

// collectProgram asks what a dump asks of every task: 71 calls.
func collectProgram() (*Program, []Ref, Op) {
	b := NewBuilder("collect state")
	var actions []Ref
	for sig := 1; sig <= 64; sig++ {
		buf := b.Zero(32)
		actions = append(actions, buf)
		b.Call(unix.SYS_RT_SIGACTION, Imm(sig), Imm(0), buf, Imm(8)).Must()
	}
	for i := range 3 {
		b.Call(unix.SYS_GETITIMER, Imm(i), b.Zero(32)).Must()
	}
	b.Call(unix.SYS_SIGALTSTACK, Imm(0), b.Zero(24)).Must()
	b.Call(unix.SYS_PRCTL, Imm(unix.PR_GET_NAME), b.Zero(16)).Must()
	b.Call(unix.SYS_BRK, Imm(0)).Must()
	pid := b.Call(unix.SYS_GETPID).Must()
	return b.Program(), actions, pid
}

// seized runs f on a tracer's thread with the process stopped and captured, and lets it go afterwards.
func seized(t testing.TB, pid int, f func(*Thread)) {
	t.Helper()
	tr := ptrace.NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		th, err := hold(pid)
		if err != nil {
			return err
		}
		f(th)
		return ptrace.Detach(pid, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hold stops a thread and captures it, on a tracer's thread.
func hold(tid int) (*Thread, error) {
	if err := ptrace.Seize(tid, 0); err != nil {
		return nil, err
	}
	if _, err := ptrace.Stop(tid); err != nil {
		return nil, err
	}
	return Capture(tid)
}

func TestInjectRunEject(t *testing.T) {
	pid := target(t, "sleep", "1000")
	instr, err := FindSyscall(pid)
	if err != nil {
		t.Fatal(err)
	}
	maps, _ := os.ReadFile("/proc/" + itoa(pid) + "/maps")
	prog, _, getpid := collectProgram()
	var total []time.Duration
	for range 31 {
		start := time.Now()
		seized(t, pid, func(th *Thread) {
			s, err := Inject(th, Options{SyscallAt: instr})
			if err != nil {
				t.Error(err)
				return
			}
			if !s.CrashSafe() {
				t.Error("not crash safe")
			}
			res, err := s.Run(prog)
			if err != nil {
				t.Error(err)
			} else if v, err := res.Value(getpid); err != nil || int(v) != pid {
				t.Errorf("getpid in %d = %d, %v", pid, v, err)
			}
			if err := s.Eject(); err != nil {
				t.Error(err)
			}
		})
		total = append(total, time.Since(start))
	}
	slices.Sort(total)
	t.Logf("%d calls injected, seize to detach: median %v", prog.Len()-1, total[len(total)/2])
	waitAsleep(t, pid)
	after, _ := os.ReadFile("/proc/" + itoa(pid) + "/maps")
	if string(maps) != string(after) {
		t.Errorf("maps changed:\n%s", after)
	}
}
