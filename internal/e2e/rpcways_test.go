package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// TestRPCClientVanishes has the client go away while the tree stands still, because a page server takes no pages: the tree
// goes on, and there is no set.
func TestRPCClientVanishes(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0]) // where nobody reads
	pages := os.NewFile(uintptr(fds[1]), "page server")
	c := startSwrk(t, pages)
	pages.Close()
	o := optsFor(t, rpcDump, images, target.Pid)
	o.Ps = &rpc.CriuPageServerInfo{Fd: new(int32(4))}
	c.send(&rpc.CriuReq{Type: rpcDump.Enum(), Opts: o})
	target.await("word to the page server", func() bool {
		n, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ)
		return err != nil || n > 0 && stateOf(target.Pid) == 't'
	})
	if code := c.end(); code != 1 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Stat(filepath.Join(images, "inventory.img")); err == nil {
		t.Error("there is a set")
	}
	target.Go()
}

// stateOf is the state of a task: 't' while it is traced and stopped.
func stateOf(pid int) byte {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, rest, ok := strings.Cut(string(stat), ") "); ok {
		return rest[0]
	}
	return 0
}

// TestRPCDirectories: a configuration file overrides the request, and a work directory of its own gets log and statistics.
func TestRPCDirectories(t *testing.T) {
	RequireRoot(t)
	target, images, work := tools.StartWorkload(t, "idle"), t.TempDir(), t.TempDir()
	dir, err := os.Open(work)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	conf := filepath.Join(t.TempDir(), "runc.conf")
	if err := os.WriteFile(conf, []byte("log-file=other.log\nleave-running\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startSwrk(t)
	o := optsFor(t, rpcDump, images, target.Pid)
	o.WorkDirFd, o.ConfigFile = new(int32(dir.Fd())), &conf
	c.must(c.ask(rpcDump, o), rpcDump, work)
	c.end()
	for _, name := range []string{work + "/other.log", work + "/stats-dump", images + "/inventory.img"} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(images + "/" + logOf(rpcDump)); err == nil {
		t.Error("the log of the request is there although the configuration file names another one")
	}
	target.Go()
}

// TestRPCRestoreWays restores lazily, stopped, and with a command as the parent of the tree.
func TestRPCRestoreWays(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	target.Dump(tools.Criu, images)
	restore := func(change func(*rpc.CriuOpts)) *rpcClient {
		t.Helper()
		c := startSwrk(t)
		o := optsFor(t, rpcRestore, images, 0)
		change(o)
		c.must(c.ask(rpcRestore, o), rpcRestore, images)
		return c
	}
	c := restore(func(o *rpc.CriuOpts) { o.LeaveStopped = new(true) })
	c.end()
	target.await("stop", func() bool { return stateOf(target.Pid) == 'T' })
	target.Kill()

	marker := filepath.Join(t.TempDir(), "parent")
	c = restore(func(o *rpc.CriuOpts) {
		o.ExecCmd = []string{"/bin/sh", "-c", "echo $$ > " + marker + ".tmp; mv " + marker + ".tmp " + marker + "; while ! [ -e " + marker + ".end ]; do sleep 0.01; done; exit 7"}
	})
	target.await("command", func() bool { _, err := os.Stat(marker); return err == nil })
	text, _ := os.ReadFile(marker)
	if got := strconv.Itoa(parentOf(t, target.Pid)); got != strings.TrimSpace(string(text)) {
		t.Errorf("the parent of the tree is %s, want the command, which is %s", got, text)
	}
	if err := os.WriteFile(marker+".end", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := c.end(); code != 7 {
		t.Errorf("the command ended with %d: %s", code, c.said.String())
	}
	target.Kill()

	c = restore(func(o *rpc.CriuOpts) { o.LazyPages = new(true) })
	c.end()
	target.Tree()
	target.Go()
}

// TestRPCInheritedDescriptor restores a program onto a descriptor that came with criu swrk.
func TestRPCInheritedDescriptor(t *testing.T) {
	RequireRoot(t)
	dir, images := t.TempDir(), t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	becomeSubreaper(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "while ! [ -e go ]; do sleep 0.01; done; echo hello"}, &os.ProcAttr{
		Dir: dir, Files: []*os.File{null, w, null}, Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	w.Close()
	target := &Target{t: t, Dir: dir, Pid: p.Pid}
	p.Release()
	t.Cleanup(target.Kill)
	key := fmt.Sprintf("pipe:[%d]", st.Ino)
	target.Tree()
	c := startSwrk(t)
	o := optsFor(t, rpcDump, images, target.Pid)
	o.NotifyScripts = new(true)
	c.external = []string{key}
	c.must(c.ask(rpcDump, o), rpcDump, images)
	c.end()
	target.Gone()

	r2, w2, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r2.Close()
	c = startSwrk(t, w2)
	w2.Close()
	o = optsFor(t, rpcRestore, images, 0)
	o.InheritFd = []*rpc.InheritFd{{Fd: new(int32(4)), Key: &key}}
	c.must(c.ask(rpcRestore, o), rpcRestore, images)
	c.end()
	target.Signal()
	said := make([]byte, 16)
	n, err := r2.Read(said)
	if string(said[:n]) != "hello\n" {
		t.Errorf("the program says %q, %v", said[:n], err)
	}
}

// TestRPCOwnID starts criu swrk with ids around those of the set: one that a thread of it has it gives away by executing
// itself, and finds the request again.
func TestRPCOwnID(t *testing.T) {
	RequireRoot(t)
	if !alone(t) {
		return
	}
	target, images := tools.StartWorkload(t, "threads", "3"), t.TempDir()
	target.Dump(tools.Criu, images)
	again, itself := 0, 0
	for i := range 20 {
		last := strconv.Itoa(target.Pid - 1 - i%6)
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(last), 0); err != nil {
			t.Skip("pids cannot be chosen: ", err)
		}
		c := startSwrk(t)
		resp := c.ask(rpcRestore, optsFor(t, rpcRestore, images, 0))
		switch {
		case resp.GetSuccess():
			if log, _ := os.ReadFile(filepath.Join(images, logOf(rpcRestore))); strings.Contains(string(log), "Starting again") {
				again++
			}
			c.end()
			target.Kill()
		case strings.Contains(resp.GetCrErrmsg(), "is one of this process itself: start it again"), strings.Contains(resp.GetCrErrmsg(), "that id is taken by"):
			itself++ // or it is one of a thread of this test
			c.end()
		default:
			t.Fatalf("%v; %s", resp, c.said.String())
		}
	}
	t.Logf("%d restores had threads with ids of the set, %d such an id themselves", again, itself)
	for id := target.Pid; id < target.Pid+4; id++ {
		if _, err := os.Stat(filepath.Join("/proc/self/task", strconv.Itoa(id))); err == nil {
			t.Skip("a thread of this test has got id ", id, " of the set, and keeps it")
		}
	}
	target.Restore(tools.Criu, images)
	target.Go()
}
