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

// TestProcOfOutsider has a file of /proc open of a process outside of the tree, which ends before the restore.
func TestProcOfOutsider(t *testing.T) {
	RequireRoot(t)
	outsider := exec.Command("sleep", "1000")
	if err := outsider.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		outsider.Process.Kill()
		outsider.Wait()
	})
	target, images := tools.StartWorkload(t, "procfiles", strconv.Itoa(outsider.Process.Pid)), t.TempDir()
	target.Dump(tools.Criu, images)
	outsider.Process.Kill()
	outsider.Wait()
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestOutside dumps a task whose standard output is a pipe to the harness and who has a file that is declared external,
// and restores it with others in their place.
func TestOutside(t *testing.T) {
	RequireRoot(t)
	for name, pair := range map[string][3]string{
		"ours":               {tools.Criu, tools.Criu, "packets"},
		"peer restores ours": {tools.Criu, tools.Peer},
		"ours restores peer": {tools.Peer, tools.Criu},
	} {
		t.Run(name, func(t *testing.T) {
			if pair[0] == "" || pair[1] == "" {
				t.Skip("no CRIU_PEER")
			}
			outside(t, pair[0], pair[1], pair[2])
		})
	}
}

func outside(t *testing.T, dumper, restorer, arg string) {
	becomeSubreaper(t)
	dir, images := t.TempDir(), t.TempDir()
	file, err := os.Create(filepath.Join(dir, "outside"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("abcdefgh")
	file.Seek(0, 0)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	argv := []string{"outside"}
	if arg != "" {
		argv = append(argv, arg)
	}
	p, err := os.StartProcess(tools.Workload(t, "outside"), argv, &os.ProcAttr{
		Dir: dir, Files: []*os.File{null, in, null, file}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	target := &Target{t: t, Dir: dir, Pid: p.Pid}
	p.Release()
	t.Cleanup(target.Kill)
	target.AwaitFile("ready")
	pipe, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", target.Pid))
	if err != nil {
		t.Fatal(err)
	}
	in.Close()

	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", target.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(info), "mnt_id:\t")
	mnt, err := strconv.Atoi(strings.SplitN(rest, "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	ext := fmt.Sprintf("file[%x:%x]", mnt, st.Ino)
	target.Dump(dumper, images, "--external", ext)

	// Another file under the same key, another pipe in the place of the old one.
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("ABCDEFGH"), 0o644); err != nil {
		t.Fatal(err)
	}
	given, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	out2, in2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out2.Close()
	cmd := exec.Command(restorer, "restore", "-d", "-D", images, "-o", "restore.log", "-v4",
		"--inherit-fd", "fd[3]:"+pipe, "--inherit-fd", "fd[4]:"+ext)
	cmd.ExtraFiles = []*os.File{in2, given}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, text, errorsOf(filepath.Join(images, "restore.log")))
	}
	in2.Close()
	target.Tree()
	target.Go()
	b := make([]byte, 100)
	if n, err := out2.Read(b); string(b[:max(n, 0)]) != "after\n" {
		t.Errorf("the pipe has %q (%v)", b[:max(n, 0)], err)
	}
}
