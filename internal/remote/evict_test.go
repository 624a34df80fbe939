package remote

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// abandon lets a process go with an engine in it, as the kernel does when the tracer is killed after a program.
func abandon(t *testing.T, pid int) {
	t.Helper()
	seized(t, pid, func(th *Thread) {
		s, err := Inject(th, Options{})
		if err == nil {
			prog, _, _ := collectProgram()
			_, err = s.Run(prog)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

func maps(t *testing.T, pid int) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEvict(t *testing.T) {
	pid := target(t, "sleep", "1000")
	before := maps(t, pid)
	if err := Evict(t.Context(), pid); err != nil { // there is none
		t.Fatal(err)
	}
	abandon(t, pid)
	abandon(t, pid)
	if bytes.Equal(before, maps(t, pid)) {
		t.Fatal("no engine was left behind")
	}
	if err := Evict(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if after := maps(t, pid); !bytes.Equal(before, after) {
		t.Errorf("maps are not what they were:\n%s", after)
	}
	waitAsleep(t, pid)
}

func TestEvictFromStopped(t *testing.T) {
	pid := target(t, "sleep", "1000")
	before := maps(t, pid)
	abandon(t, pid)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED, nil); err != nil {
		t.Fatal(err)
	}
	if err := Evict(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if after := maps(t, pid); !bytes.Equal(before, after) {
		t.Errorf("maps are not what they were:\n%s", after)
	}
	// It goes back to its stop by itself once it is let go.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stat, []byte(") T ")) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not stopped: %s", stat)
		}
	}
}

func TestEvictFromGone(t *testing.T) {
	pid := target(t, "sleep", "1000")
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if err := Evict(t.Context(), pid); err != nil {
		t.Error(err)
	}
}
