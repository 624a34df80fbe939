package guardian

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/internal/procfs"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
)

// playParasite is a ward that puts the engine into a task, runs a program and takes it out again, over and over.
func playParasite(pid int) error {
	g, err := Start(os.Stderr)
	if err != nil {
		return err
	}
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return err
	}
	st, err := dir.Stat()
	if err != nil {
		return err
	}
	instr, err := remote.FindSyscall(pid)
	if err != nil {
		return err
	}
	if _, err := g.Record(Evict{[]Task{{PID: pid, StartTime: st.StartTime}}}); err != nil {
		return err
	}
	b := remote.NewBuilder("sigactions")
	for sig := 1; sig <= 64; sig++ {
		b.Call(unix.SYS_RT_SIGACTION, remote.Imm(sig), remote.Imm(0), b.Zero(32), remote.Imm(8)).Must()
	}
	prog := b.Program()
	escape, err := remote.FindEscape(pid)
	if err != nil {
		return err
	}
	t := ptrace.NewTracer()
	fmt.Println("ready")
	for {
		err := t.Do(func() error {
			tids, err := stopAll(dir)
			if err != nil {
				return err
			}
			th, err := remote.Capture(pid)
			if err != nil {
				return err
			}
			s, err := remote.Inject(th, remote.Options{SyscallAt: instr, Escape: &escape})
			if err != nil {
				return err
			}
			if !s.CrashSafe() {
				return fmt.Errorf("not crash safe")
			}
			for range 10 {
				if _, err := s.Run(prog); err != nil {
					return err
				}
			}
			if err := s.Eject(); err != nil {
				return err
			}
			for _, tid := range tids {
				if err := ptrace.Detach(tid, 0); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// stopAll seizes and stops all threads of a task, and returns them.
func stopAll(dir *procfs.Dir) (tids []int, err error) {
	for fresh := true; fresh; {
		fresh = false
		all, err := dir.Threads()
		if err != nil {
			return tids, err
		}
		for _, tid := range all {
			if slices.Contains(tids, tid) {
				continue
			}
			if err := ptrace.Seize(tid, 0); err != nil {
				return tids, err
			}
			if _, err := ptrace.Stop(tid); err != nil {
				return tids, err
			}
			tids, fresh = append(tids, tid), true
		}
	}
	return tids, nil
}

// playSpinner is a Go program that computes, sleeps and makes system calls until its input ends, and exits with 0
// if it has found nothing wrong.
func playSpinner() int {
	os.WriteFile("/proc/self/comm", []byte("spinning"), 0)
	wrong := make(chan int, 4)
	for i := range cap(wrong) {
		go func() {
			for {
				h, x := uint64(14695981039346656037), 1.0
				for i := range uint64(20000) {
					h = (h ^ i) * 1099511628211
					x = x*1.0000001 + 0.5
				}
				if h != 533740813127085253 || x < 10000 || os.Getpid() != unix.Getpid() {
					wrong <- 2 + i
				}
				start := time.Now()
				if time.Sleep(100 * time.Microsecond); time.Since(start) < 100*time.Microsecond {
					wrong <- 10 + i
				}
			}
		}()
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		wrong <- 0
	}()
	return <-wrong
}

// TestKilledParasite kills a ward at random instants of its work in a task. The task lives, nothing of the ward is
// left in it, and it is not stopped.
func TestKilledParasite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to trace other processes")
	}
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Run("C", func(t *testing.T) {
		cc, err := exec.LookPath("cc")
		if err != nil {
			t.Skip("needs a C compiler for its target")
		}
		target := filepath.Join(t.TempDir(), "spin")
		if out, err := exec.Command(cc, "-O1", "-o", target, "testdata/spin.c").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		killParasites(t, func() *exec.Cmd { return exec.Command(target) })
	})
	t.Run("Go", func(t *testing.T) {
		killParasites(t, func() *exec.Cmd { return ward(t, ".", "spin") })
	})
}

func killParasites(t *testing.T, target func() *exec.Cmd) {
	harmed := 0
	const rounds = 50
	for range rounds {
		if !killParasite(t, target()) {
			harmed++
		}
	}
	if harmed > 0 {
		t.Errorf("%d of %d targets died or were harmed", harmed, rounds)
	}
}

func killParasite(t *testing.T, c *exec.Cmd) (unharmed bool) {
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	proc := fmt.Sprintf("/proc/%d/", c.Process.Pid)
	until(t, "the target runs", func() bool { // its own code, not its start
		comm, _ := os.ReadFile(proc + "comm")
		return string(comm) == "spinning\n"
	})
	before := executable(t, proc)
	w := ward(t, t.TempDir(), fmt.Sprintf("parasite=%d", c.Process.Pid))
	out, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	w.Stderr = &log
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	if l, _ := bufio.NewReader(out).ReadString('\n'); l != "ready\n" {
		t.Errorf("the ward says %q", l)
	}
	time.Sleep(rand.N(3 * time.Millisecond)) // what is under test is any instant
	w.Process.Kill()
	w.Wait() // and for the guardian, which holds the log
	after := executable(t, proc)
	in.Close()
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		err = fmt.Errorf("it does not go on")
	}
	if err != nil || len(after) > 0 && before != after || strings.Contains(log.String(), "not crash safe") {
		t.Logf("target: %v; log: %s; maps before:\n%safter:\n%s", err, &log, before, after)
		return false
	}
	return true
}

// executable returns the executable mappings of a process, which do not change by themselves.
func executable(t *testing.T, proc string) string {
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		t.Error(err)
	}
	var b strings.Builder
	for l := range strings.Lines(string(maps)) {
		if f := strings.Fields(l); len(f) > 1 && strings.Contains(f[1], "x") {
			b.WriteString(l)
		}
	}
	return b.String()
}
