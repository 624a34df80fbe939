package guardian

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wardEnv names the variable that makes the test binary a ward: it holds what the ward does, step by step.
const wardEnv = "GUARDIAN_TEST_WARD"

func TestMain(m *testing.M) {
	Main(Kind{"fail", func(context.Context, json.RawMessage, []int) error { return errors.New("as told") }},
		Kind{"slow", func(context.Context, json.RawMessage, []int) error { time.Sleep(300 * time.Millisecond); return nil }})
	if script := os.Getenv(wardEnv); script == "spin" {
		os.Exit(playSpinner())
	} else if script != "" {
		if err := playWard(strings.Fields(script)); err != nil {
			fmt.Fprintln(os.Stderr, "ward:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type fail struct{}

func (fail) UndoKind() string { return "fail" }

type slow struct{}

func (slow) UndoKind() string { return "slow" }

// playWard is what a ward does. A step is a verb, an equals sign and a file; each file is made after it is recorded.
func playWard(script []string) error {
	g, err := Start(os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.Open(".")
	if err != nil {
		return err
	}
	forgets := map[string]func(){}
	for _, step := range script {
		verb, name, _ := strings.Cut(step, "=")
		switch verb {
		case "file": // make a file that is to go before the commit
			if forgets[name], err = g.Record(RemoveFile{Dir: dir, Name: name}); err == nil {
				err = os.WriteFile(name, nil, 0o600)
			}
		case "rest": // make a file that is to go after the commit
			if forgets[name], err = g.Finish(RemoveFile{Dir: dir, Name: name}); err == nil {
				err = os.WriteFile(name, nil, 0o600)
			}
		case "write":
			var f *os.File
			if f, err = os.OpenFile(name, os.O_RDWR, 0); err == nil {
				_, err = g.Record(Write{File: f, Text: "0"})
				f.Close()
			}
		case "cont", "kill": // signal the process of the inherited pidfd
			s, keep := syscall.SIGCONT, g.Record
			if verb == "kill" {
				s, keep = syscall.SIGKILL, g.Finish
			}
			_, err = keep(Signal{Pidfd: os.NewFile(3, "pidfd"), Signal: s})
		case "fail":
			_, err = g.Record(fail{})
		case "slow":
			_, err = g.Record(slow{})
		case "forget":
			forgets[name]()
		case "commit":
			err = g.Commit()
		case "close":
			err = g.Close()
		case "hold": // let a child hold a copy of the socket
			sh := exec.Command("sleep", "1000")
			sh.ExtraFiles = []*os.File{g.sock}
			if err = sh.Start(); err == nil {
				fmt.Println("held", sh.Process.Pid)
			}
		case "die":
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		case "parasite":
			var pid int
			if pid, err = strconv.Atoi(name); err == nil {
				err = playParasite(pid)
			}
		case "wake":
			g.wake()
		case "wait":
			fmt.Println("guardian", g.Pid())
			bufio.NewReader(os.Stdin).ReadString('\n')
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	return nil
}

// ward returns a command that plays a ward in dir. When its output ends, both it and its guardian have exited.
func ward(t *testing.T, dir, script string, files ...*os.File) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Dir, c.ExtraFiles = dir, files
	c.Env = append(os.Environ(), wardEnv+"="+script)
	return c
}

func TestWardDies(t *testing.T) {
	tests := []struct {
		name, script string
		left         string // files there are in the end
		log          string // what the guardian says it has done, in this order
	}{
		{"at once", "die", "freezer", ""},
		{"after one step", "file=a die", "freezer", "a"},
		{"after two", "file=a file=b die", "freezer", "b a"},
		{"after the first was forgotten", "file=a file=b forget=a die", "a freezer", "b"},
		{"before the commit", "file=a rest=r die", "freezer r", "a"},
		{"after the commit", "file=a rest=r rest=s commit die", "a freezer", "r s"},
		{"after part of the rest", "file=a rest=r rest=s commit forget=r die", "a freezer r", "s"},
		{"with a new step after the commit", "file=a commit file=b die", "a freezer", "b"},
		{"after all is done", "file=a rest=r commit forget=r commit die", "a freezer r", ""},
		{"orderly after the commit", "file=a commit close", "a freezer", ""},
		{"orderly with steps left", "file=a close", "freezer", "a"},
		{"without close", "file=a", "freezer", "a"},
		{"after close", "file=a commit close die", "a freezer", ""},
		{"with a step that fails", "file=a fail file=b die", "freezer", "b a"},
		{"with the guardian up", "file=a wake file=b forget=a die", "a freezer", "b"},
		{"orderly with the guardian up", "file=a rest=r wake commit forget=r close", "a freezer r", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "freezer"), []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := ward(t, dir, "write=freezer "+test.script).CombinedOutput()
			if died := strings.Contains(test.script, "die"); (err != nil) != died {
				t.Errorf("the ward: %v", err)
			}
			if left := strings.Join(list(t, dir), " "); left != test.left {
				t.Errorf("left: %s, want %s; log:\n%s", left, test.left, out)
			}
			var done []string
			for l := range strings.Lines(string(out)) {
				if _, r, ok := strings.Cut(l, "remove-file "); ok {
					name, _, _ := strings.Cut(strings.TrimPrefix(r, `{"Name":"`), `"`)
					done = append(done, name)
				}
			}
			if log := strings.Join(done, " "); log != test.log {
				t.Errorf("done: %s, want %s; log:\n%s", log, test.log, out)
			}
			thawed, err := os.ReadFile(filepath.Join(dir, "freezer"))
			if want := !strings.Contains(test.script, "commit"); err != nil || (string(thawed) == "0") != want {
				t.Errorf("freezer %q (%v)", thawed, err)
			}
		})
	}
}

func list(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// target starts a process for a ward to signal, and returns a pidfd of it.
func target(t *testing.T) (*exec.Cmd, *os.File) {
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	fd, err := unix.PidfdOpen(c.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return c, f
}

// TestSignal kills a ward that has stopped a task, before its commit and after it.
func TestSignal(t *testing.T) {
	for _, script := range []string{"cont kill die", "cont kill commit die"} {
		t.Run(script, func(t *testing.T) {
			c, pidfd := target(t)
			if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			var info unix.Siginfo
			if err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WSTOPPED, nil); err != nil {
				t.Fatal(err)
			}
			out, _ := ward(t, t.TempDir(), script, pidfd).CombinedOutput()
			if strings.Contains(script, "commit") {
				if err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil || info.Code != 2 { // CLD_KILLED
					t.Errorf("not killed: %v, code %d; log:\n%s", err, info.Code, out)
				}
				return
			}
			if err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WCONTINUED, nil); err != nil || info.Code != 6 { // CLD_CONTINUED
				t.Errorf("not continued: %v, code %d; log:\n%s", err, info.Code, out)
			}
		})
	}
}

// TestAwaitOrphans waits for a guardian that takes its time.
func TestAwaitOrphans(t *testing.T) {
	dir := t.TempDir()
	c := ward(t, dir, "file=a slow die") // its output is not waited for, which the guardian has too
	if err := c.Run(); err == nil {
		t.Fatal("the ward lives")
	}
	if left := list(t, dir); len(left) != 1 {
		t.Skipf("the guardian was faster: left %v", left)
	}
	if !AwaitOrphans(context.Background(), time.Minute) {
		t.Error("nobody was waited for")
	}
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSocketHeldByOthers kills a ward whose socket lives on in another process.
func TestSocketHeldByOthers(t *testing.T) {
	dir := t.TempDir()
	c := ward(t, dir, "file=a hold wait")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var holder, guardian int
	if _, err := fmt.Fscanf(stdout, "held %d\nguardian %d\n", &holder, &guardian); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(holder, syscall.SIGKILL)
	pidfd, err := unix.PidfdOpen(guardian, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	c.Process.Kill()
	c.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 60_000); n != 1 {
		t.Fatalf("the guardian has not ended: %v", err)
	}
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("left: %v; log:\n%s", left, &log)
	}
}

// TestImmune looks at a guardian from outside and sends it every signal: at its sentry, and when it is up itself.
func TestImmune(t *testing.T) {
	t.Run("sentry", func(t *testing.T) { testImmune(t, "file=a wait commit close", false) })
	t.Run("guardian", func(t *testing.T) { testImmune(t, "file=a wake wait commit close", true) })
}

func testImmune(t *testing.T, script string, up bool) {
	dir := t.TempDir()
	extra, err := os.Open(dir) // not close-on-exec in the ward
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	c := ward(t, dir, script, extra)
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(stdout, "guardian %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	until(t, "the guardian is up", func() bool {
		comm, _ := os.ReadFile(proc + "comm")
		threads, _ := os.ReadDir(proc + "task")
		return string(comm) == argv0+"\n" && (len(threads) > 1) == up
	})
	for s := syscall.Signal(1); s <= 64; s++ {
		if s != syscall.SIGKILL && s != syscall.SIGSTOP && !slices.Contains(faults, os.Signal(s)) {
			if err := syscall.Kill(pid, s); err != nil {
				t.Fatalf("signal %d: %v", s, err)
			}
		}
	}
	fds := list(t, proc+"fd")
	for i, fd := range fds {
		to, _ := os.Readlink(proc + "fd/" + fd)
		fds[i] = fd + " " + strings.TrimRight(to, "0123456789[]")
	}
	for _, fd := range fds {
		if strings.Contains(fd, dir) && !strings.HasPrefix(fd, "5 ") { // 5 is that of the record
			t.Errorf("the guardian holds %q", fds)
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of %d: %v", sid, pid, err)
	}
	stdin.Close() // the ward goes on to its end
	io.Copy(io.Discard, stdout)
	if err := c.Wait(); err != nil || strings.Contains(log.String(), "gone") {
		t.Errorf("%v; log:\n%s", err, &log)
	}
	if left := list(t, dir); !slices.Equal(left, []string{"a"}) {
		t.Errorf("left: %v", left)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// TestGuardianDies shows that the ward goes on without it.
func TestGuardianDies(t *testing.T) {
	g, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(g.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(g.sock.Fd()), Events: unix.POLLRDHUP}}, 60_000); n != 1 {
		t.Fatalf("its socket is not closed: %v", err)
	}
	forget, err := g.Record(fail{})
	if err != nil {
		t.Fatal(err)
	}
	forget()
	if err := errors.Join(g.Commit(), g.Close()); err != nil {
		t.Error(err)
	}
}

func TestCloseTellsOfFailure(t *testing.T) {
	g, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Record(fail{}); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err == nil || !strings.Contains(err.Error(), "could not take everything back") {
		t.Errorf("got %v", err)
	}
}

// TestManyRecords sends more than the socket holds: the sentry has to become the guardian, which reads it.
func TestManyRecords(t *testing.T) {
	g, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * socketBuffer / maxMessage {
		forget, err := g.Record(long{strings.Repeat("x", maxMessage-100)})
		if err != nil {
			t.Fatal(err)
		}
		defer forget()
	}
	if !g.up {
		t.Error("the guardian is not up")
	}
	if err := errors.Join(g.Commit(), g.Close()); err != nil {
		t.Error(err)
	}
}

type long struct{ Text string }

func (long) UndoKind() string { return "long" }

func TestBounds(t *testing.T) {
	g, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Record(long{strings.Repeat("x", maxMessage)}); err == nil || !strings.Contains(err.Error(), "is larger than 65536") {
		t.Errorf("got %v", err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

// TestRemoveOnlyThatFile records a file that is then replaced by another.
func TestRemoveOnlyThatFile(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	g, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ours", "theirs"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Record(RemoveFile{Dir: d, Name: name, Dev: st.Dev, Ino: st.Ino}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "theirs")); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if left := list(t, dir); !slices.Equal(left, []string{"theirs"}) {
		t.Errorf("left: %v", left)
	}
}

// BenchmarkRecord is the cost of a step that is journaled and forgotten.
func BenchmarkRecord(b *testing.B) {
	g, err := Start(nil)
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.Open(".")
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	for b.Loop() {
		forget, err := g.Record(RemoveFile{Dir: dir, Name: "x"})
		if err != nil {
			b.Fatal(err)
		}
		forget()
	}
	if err := g.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkStart is how long Start holds up its ward; BenchmarkStartClose, until the guardian has come up and gone again.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		g, err := Start(nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.Close()
		b.StartTimer()
	}
}

func BenchmarkStartClose(b *testing.B) {
	for b.Loop() {
		g, err := Start(nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
