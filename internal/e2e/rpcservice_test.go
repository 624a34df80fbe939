package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// startService starts `criu service` and returns the path of its socket, in a directory that everybody may write to.
func startService(t *testing.T) string {
	t.Helper()
	becomeSubreaper(t)
	dir, err := os.MkdirTemp("", "criu-service-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var stderr bytes.Buffer
	cmd := exec.Command(tools.Criu, "service", "-W", dir, "--address", "socket", "-v4", "-o", "service.log", "--status-fd", "3")
	cmd.ExtraFiles, cmd.Stderr, cmd.WaitDelay = []*os.File{w}, &stderr, time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the service: %v: %s", err, stderr.String())
		}
		if _, err := os.Lstat(filepath.Join(dir, "socket")); err == nil {
			t.Error("the service left its socket behind")
		}
	})
	if n, err := r.Read(make([]byte, 1)); n != 1 {
		t.Fatalf("the service does not start: %v; %s", err, stderr.String())
	}
	return filepath.Join(dir, "socket")
}

// collect waits until a dumped task can be collected: the worker that dumped it may have it for a moment longer than the
// client waits for its answer.
func collect(target *Target) {
	target.await("end of the dumped task", func() bool {
		pid, err := unix.Wait4(target.Pid, nil, unix.WNOHANG, nil)
		return pid == target.Pid || err != nil
	})
}

// connectService connects to a service.
func connectService(t testing.TB, path string) *rpcClient {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &rpcClient{t: t, socket: fd}
	t.Cleanup(c.close)
	return c
}

// TestRPCService dumps and restores through the service.
func TestRPCService(t *testing.T) {
	RequireRoot(t)
	target, images, path := tools.StartWorkload(t, "files"), t.TempDir(), startService(t)
	target.Tree()
	c := connectService(t, path)
	c.must(c.ask(rpcDump, optsFor(t, rpcDump, images, target.Pid)), rpcDump, images)
	collect(target)
	c = connectService(t, path)
	resp := c.ask(rpcRestore, optsFor(t, rpcRestore, images, 0))
	c.must(resp, rpcRestore, images)
	if got := int(resp.GetRestore().GetPid()); got != target.Pid {
		t.Errorf("restored as %d, want %d", got, target.Pid)
	}
	target.Go()

	for field, change := range map[string]func(*rpc.CriuOpts){
		"rst_sibling": func(o *rpc.CriuOpts) { o.RstSibling = new(true) },
		"inherit_fd":  func(o *rpc.CriuOpts) { o.InheritFd = []*rpc.InheritFd{{Fd: new(int32(0)), Key: new("x")}} },
	} {
		c := connectService(t, path)
		o := optsFor(t, rpcRestore, images, 0)
		change(o)
		if resp := c.ask(rpcRestore, o); resp.GetSuccess() || !strings.Contains(resp.GetCrErrmsg(), field) {
			t.Errorf("%s: %v", field, resp)
		}
	}
	other := Run(t, tools.Criu, "service", "-W", filepath.Dir(path), "--address", "socket")
	if other.Code != 1 || !strings.Contains(other.Stderr, "another one listens") {
		t.Errorf("a second service: exit status %d, %s", other.Code, other.Stderr)
	}
}

// userEnv marks the part of a test that runs as another user; it holds the path of the service's socket.
const userEnv = "CRYO_TEST_SERVICE"

// TestRPCServiceOfAnotherUser is a client that is not root: it may have its own tasks dumped and restored, and no others.
func TestRPCServiceOfAnotherUser(t *testing.T) {
	if path := os.Getenv(userEnv); path != "" {
		clientOfService(t, path)
		return
	}
	RequireRoot(t)
	path := startService(t)
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.Dir = filepath.Dir(path)
	cmd.Env = append(os.Environ(), userEnv+"="+path, "CRYO_BIN="+filepath.Dir(tools.Criu), "TMPDIR="+filepath.Dir(path))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	reapOrphans()
	if err != nil || bytes.Contains(out, []byte("--- SKIP")) {
		log, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "service.log"))
		t.Errorf("%v\n%s\n%s", err, out, log)
	}
}

func clientOfService(t *testing.T, path string) {
	// A process that changed its user is not dumpable, and its descriptors are root's.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target := Start(t, dir, "/bin/sleep", "1000")
	target.await("name of its own", func() bool {
		comm, _ := os.ReadFile("/proc/" + strconv.Itoa(target.Pid) + "/comm")
		return string(comm) == "sleep\n"
	})
	target.Tree()
	t.Cleanup(func() { unix.Kill(target.Pid, unix.SIGKILL) })
	images := t.TempDir()
	c := connectService(t, path)
	c.must(c.ask(rpcDump, optsFor(t, rpcDump, images, target.Pid)), rpcDump, images)
	collect(target)
	c = connectService(t, path)
	c.must(c.ask(rpcRestore, optsFor(t, rpcRestore, images, 0)), rpcRestore, images)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(target.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, none := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if !slices.Contains(strings.Split(string(status), "\n"), none+":\t0000000000000000") {
			t.Errorf("the restored task has capabilities:\n%s", status)
		}
	}
	c = connectService(t, path)
	o := optsFor(t, rpcDump, images, os.Getppid())
	if resp := c.ask(rpcDump, o); resp.GetSuccess() {
		t.Errorf("a task of root was dumped: %v", resp)
	}
	c = connectService(t, path)
	o = optsFor(t, rpcDump, images, target.Pid)
	o.ImagesDirFd, o.ImagesDir = new(int32(-1)), new("/root")
	if resp := c.ask(rpcDump, o); resp.GetSuccess() {
		t.Errorf("images in a directory of root: %v", resp)
	}
}
