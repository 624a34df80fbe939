package remote

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/internal/procfs"
	"cryo/internal/ptrace"
)

// childrenOf lists the children of a task.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	list, err := dir.Children([]int{pid})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// stackOf reads what lies at the stack pointer of a stopped thread from task pid.
func stackOf(t *testing.T, th *Thread, pid int) []byte {
	t.Helper()
	b := make([]byte, 512)
	if err := ptrace.ReadMemory(pid, th.Regs.StackPointer(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCopy copies a task, lets that go and the copy end, and looks whether anything is left of it.
func TestCopy(t *testing.T) {
	pid := target(t, "sleep", "1000")
	tr := ptrace.NewTracer()
	defer tr.Close()
	err := tr.Do(func() error {
		th, err := hold(pid)
		if err != nil {
			return err
		}
		s, err := Inject(th, Options{})
		if err != nil {
			return err
		}
		early, err := s.Copy()
		if err != nil {
			return err
		}
		if err := errors.Join(early.Kill(), s.Reap(early)); err != nil {
			return err
		}
		if left := childrenOf(t, pid); len(left) > 0 {
			t.Errorf("the stopped task has children %v", left)
		}
		c, err := s.Copy()
		if err != nil {
			return err
		}
		if err := c.Detach(); err != nil {
			return err
		}
		if has, err := HasEngine(c.PID); !has || err != nil {
			t.Errorf("a copy is not known by its engine: %v", err)
		}
		fds, err := os.ReadDir("/proc/" + itoa(c.PID) + "/fd")
		if err != nil || len(fds) > 0 {
			t.Errorf("the copy has %d descriptors, %v", len(fds), err)
		}
		if sid, err := unix.Getsid(c.PID); err != nil || sid != c.PID {
			t.Errorf("the copy is in session %d, %v", sid, err)
		}
		if !bytes.Equal(stackOf(t, th, pid), stackOf(t, th, c.PID)) {
			t.Error("the copy has other memory")
		}
		if err := errors.Join(s.Eject(), ptrace.Detach(pid, 0)); err != nil {
			return err
		}
		if n, err := os.ReadDir("/proc/" + itoa(pid) + "/fd"); err != nil || len(n) < 3 {
			t.Errorf("the task has %d descriptors left, %v", len(n), err)
		}
		waitAsleep(t, pid)
		if err := errors.Join(c.Kill(), Reap(context.Background(), pid, c.VPID)); err != nil {
			return err
		}
		return Reap(context.Background(), pid, c.VPID) // once more does no harm
	})
	if err != nil {
		t.Fatal(err)
	}
	if left := childrenOf(t, pid); len(left) > 0 {
		t.Errorf("the task has children %v", left)
	}
	waitAsleep(t, pid)
}

// TestCopyAlone lets the tracer die: a copy that has not been detached sleeps, one that has dies.
func TestCopyAlone(t *testing.T) {
	pid := target(t, "sleep", "1000")
	var young, old *Copy
	tr := ptrace.NewTracer()
	err := tr.Do(func() error {
		th, err := hold(pid)
		if err != nil {
			return err
		}
		s, err := Inject(th, Options{})
		if err == nil {
			young, err = s.Copy()
		}
		if err == nil {
			old, err = s.Copy()
		}
		if err == nil {
			err = old.Detach()
		}
		return err
	})
	tr.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := Evict(context.Background(), pid); err != nil {
		t.Error(err)
	}
	waitAsleep(t, pid)
	waitAsleep(t, young.PID)
	if err := unix.Kill(young.PID, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	again := ptrace.NewTracer()
	defer again.Close()
	err = again.Do(func() error {
		var errs []error
		for _, c := range []*Copy{young, old} {
			err := errors.New("not dead")
			for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); {
				err = Reap(context.Background(), pid, c.VPID)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Error(err)
	}
	if left := childrenOf(t, pid); len(left) > 0 {
		t.Errorf("the task has children %v", left)
	}
}
