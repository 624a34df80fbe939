package guardian

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
	if _, err := g.Record(Evict{PID: pid, StartTime: st.StartTime}); err != nil {
		return err
	}
	b := remote.NewBuilder("sigactions")
	for sig := 1; sig <= 64; sig++ {
		b.Call(unix.SYS_RT_SIGACTION, remote.Imm(sig), remote.Imm(0), b.Zero(32), remote.Imm(8)).Must()
	}
	prog := b.Program()
	t := ptrace.NewTracer()
	fmt.Println("ready")
	for {
		err := t.Do(func() error {
			if err := ptrace.Seize(pid, 0); err != nil {
				return err
			}
			if _, err := ptrace.Stop(pid); err != nil {
				return err
			}
			th, err := remote.Capture(pid)
			if err != nil {
				return err
			}
			s, err := remote.Inject(th, remote.Options{SyscallAt: instr})
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
			return ptrace.Detach(pid, 0)
		})
		if err != nil {
			return err
		}
	}
}

// TestKilledParasite kills a ward at random instants of its work in a task. The task lives, nothing of the ward is
// left in it, and it is not stopped.
func TestKilledParasite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to trace other processes")
	}
	if testing.Short() {
		t.Skip("takes a second or two")
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler for its target")
	}
	dir := t.TempDir()
	target := filepath.Join(dir, "spin")
	if out, err := exec.Command(cc, "-O1", "-o", target, "testdata/spin.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	died := 0
	const rounds = 60
	for range rounds {
		if !killParasite(t, target) {
			died++
		}
	}
	if died > 0 {
		t.Errorf("%d of %d targets died or were harmed", died, rounds)
	}
}

func killParasite(t *testing.T, target string) (unharmed bool) {
	c := exec.Command(target)
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
	before, err := os.ReadFile(proc + "maps")
	if err != nil {
		t.Fatal(err)
	}
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
	after, _ := os.ReadFile(proc + "maps")
	in.Close()
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err = <-done:
	case <-time.After(10 * time.Second):
		err = fmt.Errorf("it does not go on")
	}
	if err != nil || len(after) > 0 && !bytes.Equal(before, after) || strings.Contains(log.String(), "not crash safe") {
		t.Logf("target: %v; log: %s; maps before:\n%safter:\n%s", err, &log, before, after)
		return false
	}
	return true
}
