package ptrace

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
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
