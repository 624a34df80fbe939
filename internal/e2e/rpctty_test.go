package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRPCOrphanMaster dumps a program whose terminal has its other end outside, as in a container, and gets a new one.
func TestRPCOrphanMaster(t *testing.T) {
	RequireRoot(t)
	if !alone(t) {
		return
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666"); err != nil {
		t.Skip("no terminals of our own: ", err)
	}
	dir, images := t.TempDir(), t.TempDir()
	master, err := os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	becomeSubreaper(t)
	p, err := os.StartProcess(tools.Workload(t, "tty"), []string{"tty"}, &os.ProcAttr{
		Dir: dir, Files: []*os.File{slave, slave, slave}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	slave.Close()
	target := &Target{t: t, Dir: dir, Pid: p.Pid}
	p.Release()
	t.Cleanup(target.Kill)
	target.AwaitFile("ready")
	target.Tree()

	c := startSwrk(t)
	o := optsFor(t, rpcDump, images, target.Pid)
	o.OrphanPtsMaster = new(true)
	c.must(c.ask(rpcDump, o), rpcDump, images)
	c.end()
	target.Gone()
	master.Close()

	c = startSwrk(t)
	o = optsFor(t, rpcRestore, images, 0)
	o.OrphanPtsMaster = new(true)
	if resp := c.ask(rpcRestore, o); resp.GetSuccess() || !strings.Contains(resp.GetCrErrmsg(), "/dev/pts/0") {
		t.Errorf("restored although nobody takes the terminal: %v", resp)
	}
	c = startSwrk(t)
	o.NotifyScripts = new(true)
	c.must(c.ask(rpcRestore, o), rpcRestore, images)
	if !slices.Contains(c.told, "orphan-pts-master") || c.master == nil {
		t.Fatalf("no terminal among %q", c.told)
	}
	defer c.master.Close()
	target.Signal()
	target.AwaitFile("awake")
	if _, err := c.master.WriteString("\x03"); err != nil { // the key that interrupts
		t.Fatal(err)
	}
	said := make([]byte, 0, 256)
	for !strings.Contains(string(said), "its output") {
		ready := []unix.PollFd{{Fd: int32(c.master.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, int(patience.Milliseconds())); n == 0 {
			t.Fatalf("%v; the program said only %q", err, said)
		}
		n, err := c.master.Read(said[len(said):cap(said)])
		if said = said[:len(said)+n]; err != nil {
			t.Fatalf("%v; the program said %q; %s", err, said, target.read("verdict"))
		}
	}
	target.Verdict()
	if name, err := os.Readlink(filepath.Join("/proc/self/fd", fmt.Sprint(c.master.Fd()))); err != nil || !strings.HasSuffix(name, "ptmx") {
		t.Errorf("the terminal is %s, %v", name, err)
	}
}
