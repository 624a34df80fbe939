package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnixOutside dumps a task that is connected to the harness by half of a pair, which it gets back from another one,
// and by a name, which it is connected to again. Without the options that allow this everything is refused at once.
func TestUnixOutside(t *testing.T) {
	RequireRoot(t)
	for name, pair := range map[string][2]string{
		"ours": {tools.Criu, tools.Criu}, "peer restores ours": {tools.Criu, tools.Peer}, "ours restores peer": {tools.Peer, tools.Criu},
	} {
		t.Run(name, func(t *testing.T) {
			if pair[0] == "" || pair[1] == "" {
				t.Skip("no CRIU_PEER")
			}
			unixOutside(t, pair[0], pair[1])
		})
	}
}

func unixOutside(t *testing.T, dumper, restorer string) {
	becomeSubreaper(t)
	dir, images := t.TempDir(), t.TempDir()
	server, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	if err := unix.Bind(server, &unix.SockaddrUnix{Name: filepath.Join(dir, "server")}); err != nil {
		t.Fatal(err)
	}
	ours, theirs := socketPair(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := os.StartProcess(tools.Workload(t, "unixoutside"), []string{"unixoutside"}, &os.ProcAttr{
		Dir: dir, Files: []*os.File{null, null, null, theirs}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	target := &Target{t: t, Dir: dir, Pid: p.Pid}
	p.Release()
	t.Cleanup(target.Kill)
	target.AwaitFile("ready")
	expect(t, server, "before")
	expect(t, int(ours.Fd()), "before")

	var st unix.Stat_t
	if err := unix.Fstat(int(theirs.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if dumper == tools.Criu {
		result := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "refused.log")
		log := errorsOf(filepath.Join(images, "refused.log"))
		if result.Code == 0 || !strings.Contains(log, "--ext-unix-sk") || !strings.Contains(log, fmt.Sprintf("--external unix[%d]", st.Ino)) {
			t.Fatalf("exit status %d, log:\n%s", result.Code, log)
		}
	}
	target.Dump(dumper, images, "--ext-unix-sk", "--external", fmt.Sprintf("unix[%d]", st.Ino))

	ours2, theirs2 := socketPair(t)
	cmd := exec.Command(restorer, "restore", "-d", "-D", images, "-o", "restore.log", "-v4", "--ext-unix-sk",
		"--inherit-fd", fmt.Sprintf("fd[3]:socket:[%d]", st.Ino))
	cmd.ExtraFiles = []*os.File{theirs2}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, text, errorsOf(filepath.Join(images, "restore.log")))
	}
	if _, err := ours2.WriteString("answer"); err != nil {
		t.Fatal(err)
	}
	target.Go()
	expect(t, server, "after")
	expect(t, int(ours2.Fd()), "after")
}

func socketPair(t *testing.T) (a, b *os.File) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func expect(t *testing.T, fd int, want string) {
	t.Helper()
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("%q, %v where %q was sent", buf[:max(n, 0)], err, want)
	}
}
