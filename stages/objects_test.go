package stages

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cryo/internal/e2e"
	"cryo/internal/options"
	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// TestFailedDumpOfObjects lets dumps of tasks with epoll sets and terminals fail everywhere: the sets watch what they watched,
// the terminals have their settings, sizes, queues, sessions and foreground groups. What only the tasks can see they say
// themselves in the end. Names that files were given for a restore are gone again.
func TestFailedDumpOfObjects(t *testing.T) {
	e2e.RequireRoot(t)
	t.Chdir("../internal/e2e") // where it finds the workloads from
	tools, err := e2e.NewTools(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"epolls", "ptys"} {
		t.Run(name, func(t *testing.T) {
			target := tools.StartWorkload(t, name)
			failEverywhere(t, victims{pids: target.Tree(), state: objects}, dumpOptions, Dump)
			target.Go()
		})
	}
	t.Run("linked", func(t *testing.T) {
		target := tools.StartWorkload(t, "linked")
		v := victims{pids: target.Tree(), state: objects, left: func(t *testing.T, at string, valid bool) {
			links, _ := filepath.Glob(filepath.Join(target.Dir, "link_remap.*"))
			if (len(links) > 0) != valid {
				t.Errorf("failing after %s: links %q, set valid: %v", at, links, valid)
			}
			for _, link := range links {
				os.Remove(link)
			}
		}}
		failEverywhere(t, v, func(t *testing.T, pid int) *options.Options {
			o := dumpOptions(t, pid)
			o.LinkRemap = true
			return o
		}, Dump)
		if links, _ := filepath.Glob(filepath.Join(target.Dir, "link_remap.*")); len(links) == 0 {
			t.Error("the dump that did not fail made no links")
		}
	})
	t.Run("job", func(t *testing.T) {
		master, pid, dir := startJob(t, tools.Workload(t, "tty"))
		press := func(keys string) {
			if _, err := master.WriteString(keys); err != nil {
				t.Fatal(err)
			}
		}
		press("ahead")
		awaitQueued(t, pid, len("ahead"))
		failEverywhere(t, victims{pids: []int{pid}, state: objects}, dumpOptions, Dump)
		if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		awaitWord(t, filepath.Join(dir, "awake"), "")
		press("\x03")
		awaitWord(t, filepath.Join(dir, "verdict"), "PASS")
	})
}

// startJob starts a program that leads a session with a terminal, whose master is the test's, and waits until it is ready.
func startJob(t *testing.T, program string) (master *os.File, pid int, dir string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77})
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	dir = t.TempDir()
	p, err := os.StartProcess(program, []string{program}, &os.ProcAttr{
		Dir: dir, Files: []*os.File{slave, slave, slave}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	awaitWord(t, filepath.Join(dir, "ready"), strconv.Itoa(p.Pid))
	return master, p.Pid, dir
}

// awaitQueued waits until so many bytes wait at standard input of a task.
func awaitQueued(t *testing.T, pid, want int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		if n == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes wait, not %d", n, want)
		}
	}
}

// awaitWord waits until a file is there, and wants it to say something.
func awaitWord(t *testing.T, file, want string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(file)
		switch said := strings.TrimSpace(string(b)); {
		case err == nil && said == want:
			return
		case err == nil:
			t.Fatalf("%s says %q", file, said)
		case time.Now().After(end):
			t.Fatal(err)
		}
	}
}

// objects is state, and that of the task's epoll sets and terminals.
func objects(t *testing.T, pid int) string {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fds, err := dir.FDs()
	if err != nil {
		t.Fatal(err)
	}
	stat, err := dir.Read("stat")
	if err != nil {
		t.Fatal(err)
	}
	// Parent, group, session, terminal, foreground group.
	all := state(t, pid) + fmt.Sprintln(strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))[1:6])
	slices.Sort(fds)
	for _, n := range fds {
		info, err := dir.Read(fmt.Sprintf("fdinfo/%d", n))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(info), "tfd:") {
			all += fmt.Sprintf("epoll %d %s", n, info)
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			t.Fatal(err)
		}
		all += terminalState(n, fd)
		unix.Close(fd)
	}
	return all
}

// terminalState is what a terminal tells about itself; "" if it is none.
func terminalState(n, fd int) string {
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	if err == unix.ENOTTY {
		return ""
	}
	s := fmt.Sprintf("terminal %d: %v, %v", n, settings, err)
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	s += fmt.Sprintf("; size %v, %v", size, err)
	for _, question := range []struct {
		name string
		req  uint
	}{
		{"waiting", unix.TIOCINQ}, {"written", unix.TIOCOUTQ}, {"packets", unix.TIOCGPKT}, {"locked", unix.TIOCGPTLCK},
		{"exclusive", unix.TIOCGEXCL}, {"foreground", unix.TIOCGPGRP}, {"session", unix.TIOCGSID},
	} {
		v, err := unix.IoctlGetInt(fd, question.req)
		s += fmt.Sprintf("; %s %d, %v", question.name, v, err)
	}
	return s + "\n"
}
