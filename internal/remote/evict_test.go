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

// TestEvictLent closes a descriptor that the task had only for the tool.
func TestEvictLent(t *testing.T) {
	pid := target(t, "sleep", "1000")
	fds := func() string {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	before, mappings := fds(), maps(t, pid)
	for _, back := range []bool{false, true} {
		seized(t, pid, func(th *Thread) {
			s, err := Inject(th, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			b := NewBuilder("lend")
			fd := b.Call(unix.SYS_EVENTFD2, Imm(0), Imm(0)).Must()
			s.Lend(b, fd)
			res, err := s.Run(b.Program())
			if err != nil {
				t.Error(err)
				return
			}
			if back {
				b := NewBuilder("take back")
				n, err := res.Value(fd)
				if err != nil {
					t.Error(err)
				}
				s.TakeBack(b, n)
				if _, err := s.Run(b.Program()); err != nil {
					t.Error(err)
				}
			}
		})
		if (fds() == before) != back {
			t.Errorf("taken back: %v, but the descriptors are %s", back, fds())
		}
		if err := Evict(t.Context(), pid); err != nil {
			t.Fatal(err)
		}
		if after := fds(); after != before {
			t.Errorf("descriptors %s are %s", before, after)
		}
	}
	if after := maps(t, pid); !bytes.Equal(mappings, after) {
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
