package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cryo/internal/dirty"
	"cryo/internal/guardian"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/pipeline"
)

func TestMain(m *testing.M) {
	guardian.Main(GuardianKinds()...)
	dirty.KeeperMain()
	os.Exit(m.Run())
}

// startTree starts a small tree in a session of its own: a shell with a child and a deleted file, a pipe between them, and
// a connection with the test.
func startTree(t *testing.T) *os.Process {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can dump")
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh on this machine")
	}
	dir := t.TempDir()
	c := exec.Command(sh, "-c", "exec 5>gone; rm gone; echo deleted >&5; sleep 1000 | cat & echo ready; wait")
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	own, socket := connected(t)
	treeConn = own
	defer socket.Close()
	c.ExtraFiles = []*os.File{socket}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL); c.Wait() })
	var word string
	if _, err := fmt.Fscan(out, &word); err != nil || word != "ready" {
		t.Fatalf("the tree said %q: %v", word, err)
	}
	return c.Process
}

// tree lists a process and its children.
func tree(t *testing.T, root int) []int {
	t.Helper()
	dir, err := procfs.OpenTask(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	children, err := dir.Children([]int{root})
	if err != nil {
		t.Fatal(err)
	}
	return append([]int{root}, children...)
}

// state is what a dump may not change in a task: its mappings, descriptors, signal mask and tracer.
func state(t *testing.T, pid int) string {
	t.Helper()
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		t.Fatalf("task %d: %v", pid, err)
	}
	defer dir.Close()
	maps, err := dir.Read("maps")
	if err != nil {
		t.Fatal(err)
	}
	fds, err := dir.FDs()
	if err != nil {
		t.Fatal(err)
	}
	s, err := dir.Status()
	if err != nil {
		t.Fatal(err)
	}
	children, err := dir.Children([]int{pid})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%sfds %v mask %x tracer %d children %v ", maps, fds, s.SigBlk, s.TracerPid, children)
}

// awaitAsleep waits until a task sleeps by itself again.
func awaitAsleep(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		dir, err := procfs.OpenTask(pid)
		if err != nil {
			t.Fatalf("task %d has gone: %v", pid, err)
		}
		stat, err := dir.Stat()
		dir.Close()
		if err != nil {
			t.Fatal(err)
		}
		if stat.State == 'S' {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("task %d is in state %c", pid, stat.State)
		}
	}
}

func dumpOptions(t *testing.T, pid int) *options.Options {
	o := options.Default()
	o.Verb, o.Tree, o.ImagesDir = options.Dump, pid, t.TempDir()
	o.WorkDir, o.Final, o.ShellJob = o.ImagesDir, options.LeaveRunning, true
	o.TCPEstablished = true
	return o
}

// TestDumpFailsEverywhere lets a dump fail after every single thing it has acquired and every item of every stage, one
// after the other, and looks whether the tree goes on as if nothing had happened and no set is there.
func TestDumpFailsEverywhere(t *testing.T) {
	t.Run("in place", func(t *testing.T) { failEverywhere(t, connectedTree(t), dumpOptions, Dump) })
	t.Run("copied", func(t *testing.T) {
		defer func(tree, task uint64) { minCopiedTree, minCopiedTask = tree, task }(minCopiedTree, minCopiedTask)
		minCopiedTree, minCopiedTask = 0, 0
		failEverywhere(t, connectedTree(t), dumpOptions, Dump)
	})
}

// TestPreDumpFailsEverywhere does the same to a pre-dump. Mappings that are tracked do not show it in their list.
func TestPreDumpFailsEverywhere(t *testing.T) {
	if dirty.Kernel() == dirty.None {
		t.Skip("this kernel cannot track memory")
	}
	failEverywhere(t, connectedTree(t), preDumpOptions, PreDump)
}

func preDumpOptions(t *testing.T, pid int) *options.Options {
	o := dumpOptions(t, pid)
	o.Verb = options.PreDump
	return o
}

// victims are tasks that are dumped without success, the root first.
type victims struct {
	pids  []int
	state func(t *testing.T, pid int) string // what a dump may not change in one
	// left looks for what a dump has left elsewhere; valid says that its set is complete. It may be nil.
	left func(t *testing.T, at string, valid bool)
}

// connectedTree is that of startTree.
func connectedTree(t *testing.T) victims {
	root := startTree(t)
	return victims{pids: tree(t, root.Pid), state: func(t *testing.T, pid int) string { return state(t, pid) + connection(t, pid) }}
}

// failEverywhere lets a run fail after every single thing it has acquired and every item of every stage.
func failEverywhere(t *testing.T, v victims, opts func(*testing.T, int) *options.Options, run func(context.Context, *options.Options) error) {
	var before []string
	for _, pid := range v.pids {
		awaitAsleep(t, pid)
		before = append(before, v.state(t, pid))
	}
	injected := errors.New("injected failure")
	for failAt := 0; ; failAt++ {
		o := opts(t, v.pids[0])
		n, at := 0, ""
		testGraph = func(g *pipeline.Graph) {
			g.FailAfter(failer(&n, failAt, &at, injected))
		}
		err := run(context.Background(), o)
		testGraph = nil
		names, rerr := os.ReadDir(o.ImagesDir)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if at == "" {
			if err != nil {
				t.Fatalf("nothing failed, and yet: %v", err)
			}
			t.Logf("%d points of failure", failAt)
			break
		}
		past := strings.HasPrefix(at, "finish") // the dump is done, only the tool fails
		if strings.HasPrefix(at, "write-images: item") || strings.HasPrefix(at, "commit: item") {
			// What follows may have been faster than the failure, and then it is whole.
			_, serr := os.Stat(filepath.Join(o.ImagesDir, "inventory.img"))
			past = serr == nil
		}
		if v.left != nil {
			_, serr := os.Stat(filepath.Join(o.ImagesDir, "inventory.img"))
			v.left(t, at, serr == nil)
		}
		if (err == nil || !strings.Contains(err.Error(), injected.Error())) && !past { // an obstacle is text
			t.Errorf("failing after %s: %v", at, err)
		}
		for _, e := range names {
			if strings.HasSuffix(e.Name(), ".img") && !past {
				t.Errorf("failing after %s left %s", at, e.Name())
			}
		}
		for i, pid := range v.pids {
			awaitAsleep(t, pid)
			if after := v.state(t, pid); after != before[i] {
				t.Fatalf("failing after %s changed task %d:\n%s\nwas:\n%s", at, pid, after, before[i])
			}
		}
	}
}

// failer fails at the nth call. It is called by several stages at once.
func failer(n *int, failAt int, at *string, err error) func(stage, acquisition string) error {
	turn := make(chan struct{}, 1)
	return func(stage, acquisition string) error {
		turn <- struct{}{}
		defer func() { <-turn }()
		*n++
		if *n-1 != failAt {
			return nil
		}
		*at = stage + ": " + acquisition
		return err
	}
}

// TestDumpLeavesNothing dumps a tree that goes on, and compares its tasks with what they were.
func TestDumpLeavesNothing(t *testing.T) {
	root := startTree(t)
	pids := tree(t, root.Pid)
	for _, final := range []options.FinalState{options.LeaveRunning, options.LeaveStopped} {
		var before []string
		for _, pid := range pids {
			awaitAsleep(t, pid)
			before = append(before, state(t, pid))
		}
		o := dumpOptions(t, root.Pid)
		o.Final = final
		if err := Dump(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(o.ImagesDir, "inventory.img")); err != nil {
			t.Error(err)
		}
		if final == options.LeaveStopped {
			syscall.Kill(-root.Pid, syscall.SIGCONT)
		}
		for i, pid := range pids {
			awaitAsleep(t, pid)
			if after := state(t, pid); after != before[i] {
				t.Errorf("task %d:\n%s\nwas:\n%s", pid, after, before[i])
			}
		}
	}
}

// TestDryRun lists every obstacle, and changes nothing.
func TestDryRun(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can dump")
	}
	c := exec.Command("sleep", "1000")
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours") // whose end is outside of the tree
	defer f.Close()
	defer ours.Close()
	c.ExtraFiles = []*os.File{f, f}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	awaitAsleep(t, c.Process.Pid)
	o := dumpOptions(t, c.Process.Pid)
	o.DryRun = true
	err = Dump(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "fd 3") {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(o.ImagesDir); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
	awaitAsleep(t, c.Process.Pid)
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		pid  int
		want string
	}{
		{0, "no task 0"},
		{os.Getpid(), "within dumped tree"},
		{1<<22 - 1, "there is no task"},
	} {
		err := Dump(context.Background(), dumpOptions(t, test.pid))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("pid %d: got %v", test.pid, err)
		}
	}
}
