package ptrace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { patience = 300 * time.Millisecond }

// startProcess starts a process that is killed when the test ends.
func startProcess(t *testing.T, argv ...string) (pid int) {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	if err := c.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c.Process.Pid
}

// TestStuck waits for threads that never stop: for one that sleeps the wait has to end, for one that works it goes on until
// that stops after all.
func TestStuck(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may trace any process")
	}
	tr := NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		asleep := startProcess(t, "sleep", "1000")
		if err := Seize(asleep, 0); err != nil {
			return err
		}
		for range 2 { // a wait that was ended does not harm the next one
			var stuck *StuckError
			if _, err := Wait(asleep); !errors.As(err, &stuck) || !strings.Contains(err.Error(), "state S (sleeping)") {
				t.Errorf("waiting for a thread that sleeps: %v", err)
			}
		}
		if _, err := Stop(asleep); err != nil {
			t.Errorf("stopping it: %v", err)
		}

		busy := startProcess(t, "sh", "-c", "while :; do :; done")
		if err := Seize(busy, 0); err != nil {
			return err
		}
		time.AfterFunc(3*patience, func() { syscall.Kill(busy, syscall.SIGUSR1) })
		st, err := Wait(busy)
		if err != nil || !st.Stopped() {
			t.Errorf("waiting for a thread that works: %v, %v", st, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeadLeader waits for the leader of a process that was killed, whose other threads nobody has waited for. Its end is not
// reported before theirs, and the wait must not take as long as one for a thread that sleeps.
func TestDeadLeader(t *testing.T) {
	if os.Getenv("CRYO_TEST_SLEEP") != "" {
		go func() { // in a thread of its own
			runtime.LockOSThread()
			time.Sleep(time.Hour)
		}()
		os.Stdout.WriteString("ready")
		time.Sleep(time.Hour)
	}
	if os.Getuid() != 0 {
		t.Skip("only root may trace any process")
	}
	c := exec.Command("/proc/self/exe", "-test.run", "^TestDeadLeader$")
	c.Env = append(os.Environ(), "CRYO_TEST_SLEEP=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	tr := NewTracer()
	defer tr.Close()
	err = tr.Do(func() error {
		tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.Process.Pid))
		if err != nil {
			return err
		}
		for _, tid := range tids {
			n, _ := strconv.Atoi(tid.Name())
			if err := Seize(n, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if err := unix.Kill(c.Process.Pid, unix.SIGKILL); err != nil {
			return err
		}
		var stuck *StuckError
		if _, err := Wait(c.Process.Pid); !errors.As(err, &stuck) || bound(stuck.State) >= patience {
			t.Errorf("waiting for a dead leader of %d threads: %v", len(tids), err)
		}
		return Kill(c.Process.Pid)
	})
	if err != nil {
		t.Fatal(err)
	}
}
