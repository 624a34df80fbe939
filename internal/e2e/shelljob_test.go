package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal with a person at it.
type terminal struct {
	master *os.File
	mu     sync.Mutex
	shown  strings.Builder
}

// newTerminal starts an interactive shell in a terminal of its own.
func newTerminal(t *testing.T, dir string) *terminal {
	t.Helper()
	becomeSubreaper(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	shell, err := os.StartProcess("/bin/bash", []string{"bash", "--norc", "--noprofile", "-i"}, &os.ProcAttr{
		Dir: dir, Env: append(os.Environ(), "HISTFILE="), Files: []*os.File{slave, slave, slave},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		shell.Kill()
		shell.Wait()
	})
	term := &terminal{master: master}
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			term.mu.Lock()
			term.shown.Write(b[:n])
			term.mu.Unlock()
		}
	}()
	return term
}

// keys types.
func (term *terminal) keys(t *testing.T, text string) {
	t.Helper()
	if _, err := term.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// screen is what has been shown so far.
func (term *terminal) screen() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.shown.String()
}

// TestShellJob dumps a job of a shell and restores it from another shell, at another terminal.
func TestShellJob(t *testing.T) {
	RequireRoot(t)
	pairs := map[string][3]string{
		"ours":               {tools.Criu, tools.Criu, ""},
		"with /dev/tty":      {tools.Criu, tools.Criu, "/dev/tty"}, // which criu refuses to dump
		"opened twice":       {tools.Criu, tools.Criu, "/proc/self/fd/0"},
		"peer restores ours": {tools.Criu, tools.Peer, ""},
		"ours restores peer": {tools.Peer, tools.Criu, ""},
	}
	for name, pair := range pairs {
		t.Run(name, func(t *testing.T) {
			if pair[0] == "" || pair[1] == "" {
				t.Skip("no CRIU_PEER")
			}
			dir, images := t.TempDir(), t.TempDir()
			newTerminal(t, dir).keys(t, tools.Workload(t, "tty")+" "+pair[2]+"\n")
			target := &Target{t: t, Dir: dir}
			t.Cleanup(target.Kill)
			target.await("the job", func() bool {
				target.Pid, _ = strconv.Atoi(target.read("ready"))
				return target.Pid != 0
			})
			target.Tree()
			Must(t, filepath.Join(images, "dump.log"), pair[0], "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "-v4", "--shell-job")
			target.await("the end of the dumped job", func() bool { return !target.Alive() })
			second := newTerminal(t, dir)
			second.keys(t, fmt.Sprintf("%s restore --shell-job -D %s -o restore.log -v4; echo status $?\n", pair[1], images))
			target.await("the restored job", func() bool {
				if strings.Contains(second.screen(), "\r\nstatus") {
					t.Fatalf("%s\n%s", second.screen(), errorsOf(filepath.Join(images, "restore.log")))
				}
				return target.Alive()
			})
			target.Signal()
			target.AwaitFile("awake")
			second.keys(t, "\x03")
			target.Verdict()
			for _, want := range []string{"from the job", "and its output", "\r\nstatus 0"} {
				target.await(want+" on the screen", func() bool { return strings.Contains(second.screen(), want) })
			}
		})
	}
}
