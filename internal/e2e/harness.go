package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// patience bounds every wait of the harness: a machine under load is slow, a
// hang is a failure.
const patience = 2 * time.Minute

// Tools are the binaries under test and the compiled workloads.
type Tools struct {
	Criu string // criu of this tree
	Crit string // crit of this tree
	Peer string // the peer's criu, empty when there is none
	dir  string

	mu    sync.Mutex
	built map[string]string
}

// NewTools builds the commands into dir, unless CRYO_BIN says where they are.
func NewTools(dir string) (*Tools, error) {
	tools := &Tools{Peer: os.Getenv("CRIU_PEER"), dir: dir, built: map[string]string{}}
	bin := os.Getenv("CRYO_BIN")
	if bin == "" {
		bin = dir
		build := exec.Command("go", "build", "-trimpath", "-o", bin, "cryo/cmd/criu", "cryo/cmd/crit")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the commands: %w\n%s", err, out)
		}
	}
	tools.Criu, tools.Crit = filepath.Join(bin, "criu"), filepath.Join(bin, "crit")
	return tools, nil
}

// Workload compiles testdata/workloads/name.c once and returns the binary.
func (tools *Tools) Workload(t testing.TB, name string) string {
	t.Helper()
	tools.mu.Lock()
	defer tools.mu.Unlock()
	if bin, ok := tools.built[name]; ok {
		return bin
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to compile the workloads: apt-get install gcc libc6-dev")
	}
	bin := filepath.Join(tools.dir, name)
	src := filepath.Join("..", "..", "testdata", "workloads", name+".c")
	if out, err := exec.Command(gcc, "-O1", "-Wall", "-Werror", "-pthread", "-o", bin, src, "-lrt").CombinedOutput(); err != nil {
		t.Fatalf("compile %s: %v\n%s", src, err, out)
	}
	tools.built[name] = bin
	return bin
}

// Target is one program under test and what the harness knows of it.
type Target struct {
	t   testing.TB
	Dir string // where it runs and leaves its files
	Pid int
	// Options are those of every dump and restore.
	Options []string
	// Init says that it is the init of a pid namespace of its own, and so comes back with another pid.
	Init bool

	tree []int // every pid that was in its tree when last looked
}

// Start runs a program in a directory and a session of its own, with nothing
// but /dev/null and two files of that directory for descriptors.
func Start(t testing.TB, dir string, argv ...string) *Target {
	t.Helper()
	return start(t, dir, allInits, argv...)
}

// allInits makes every program the init of a pid namespace, so that all tests see how trees in namespaces do.
var allInits = os.Getenv("E2E_PIDNS") != ""

func start(t testing.TB, dir string, init bool, argv ...string) *Target {
	t.Helper()
	becomeSubreaper(t)
	files := make([]*os.File, 3)
	for i, open := range []func() (*os.File, error){
		func() (*os.File, error) { return os.Open(os.DevNull) },
		func() (*os.File, error) { return os.Create(filepath.Join(dir, "stdout")) },
		func() (*os.File, error) { return os.Create(filepath.Join(dir, "stderr")) },
	} {
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	sys := &syscall.SysProcAttr{Setsid: true}
	if init {
		sys.Cloneflags = unix.CLONE_NEWPID
	}
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Dir: dir, Env: os.Environ(), Files: files, Sys: sys})
	if err != nil {
		t.Fatalf("start %s: %v", argv[0], err)
	}
	target := &Target{t: t, Dir: dir, Pid: p.Pid, Init: init}
	p.Release()
	t.Cleanup(target.Kill)
	return target
}

// StartWorkload starts a workload and waits until its state stands.
func (tools *Tools) StartWorkload(t testing.TB, name string, args ...string) *Target {
	t.Helper()
	return tools.startWorkload(t, allInits, name, args...)
}

func (tools *Tools) startWorkload(t testing.TB, init bool, name string, args ...string) *Target {
	t.Helper()
	target := start(t, t.TempDir(), init, append([]string{tools.Workload(t, name)}, args...)...)
	target.AwaitFile("ready")
	return target
}

// AwaitFile waits until the target has made a file, and fails when the target
// has ended or says otherwise first. A target that needs what this kernel has not skips the test.
func (target *Target) AwaitFile(name string) {
	target.t.Helper()
	target.await("the file "+name, func() bool {
		alive := target.Alive() // what it writes it writes before it ends
		if _, err := os.Stat(filepath.Join(target.Dir, name)); err == nil {
			return true
		}
		if v, err := os.ReadFile(filepath.Join(target.Dir, "verdict")); err == nil {
			if why, skip := strings.CutPrefix(string(v), "SKIP: "); skip {
				target.t.Skip("the kernel lacks " + why)
			}
			target.t.Fatalf("verdict before %s: %s", name, v)
		}
		if !alive {
			target.t.Fatalf("pid %d ended before it made %s; stderr: %s", target.Pid, name, target.read("stderr"))
		}
		return false
	})
}

// await waits until something is done, as long as the target makes files or lets them grow.
func (target *Target) await(what string, done func() bool) {
	target.t.Helper()
	deadline, seen := time.Now().Add(patience), target.files()
	for pause := 200 * time.Microsecond; !done(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			if now := target.files(); now != seen {
				deadline, seen = time.Now().Add(patience), now
				continue
			}
			target.t.Fatalf("no %s after %v", what, patience)
		}
		pause = min(2*pause, 5*time.Millisecond)
	}
}

// files describes the files in the target's directory.
func (target *Target) files() string {
	var text strings.Builder
	entries, _ := os.ReadDir(target.Dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			fmt.Fprintln(&text, e.Name(), info.Size())
		}
	}
	return text.String()
}

func (target *Target) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(target.Dir, name))
	return string(bytes.TrimSpace(b))
}

// Alive says whether the root task exists and is no zombie.
func (target *Target) Alive() bool {
	if target.Init && !alive(target.Pid) {
		target.find()
	}
	return alive(target.Pid)
}

// find finds the root again, which has been restored with another pid: it is an init, and works in the target's directory.
func (target *Target) find() {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if cwd, _ := os.Readlink(dir + "/cwd"); strings.HasPrefix(cwd+"/", target.Dir+"/") && isInit(pid) && alive(pid) && ours(pid) {
			target.Pid = pid
		}
	}
}

// isInit says whether a task is the init of a pid namespace below the test's.
func isInit(pid int) bool {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return false
	}
	defer dir.Close()
	s, err := dir.Status()
	return err == nil && len(s.NSpid) == 2 && s.NSpid[1] == 1
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return len(rest) > 1 && rest[1] != 'Z' && rest[1] != 'X'
}

// Tree lists the pids of the target's tree, root first, and remembers them.
func (target *Target) Tree() []int {
	pids := []int{target.Pid}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, childrenOf(pids[i])...)
	}
	target.tree = pids
	return pids
}

// childrenOf lists the children of all threads of a task.
func childrenOf(pid int) (children []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// Gone reaps the dumped tree and fails if a task of it is left.
func (target *Target) Gone() {
	target.t.Helper()
	for _, pid := range target.tree {
		target.await(fmt.Sprintf("end of pid %d", pid), func() bool {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			return !alive(pid)
		})
	}
	reapOrphans()
}

// reapOrphans reaps the zombies that fell to the test as a subreaper: tasks a
// tree made after it was last looked at. A pid is free only when reaped. Tools are left to who started them and waits for
// them.
func reapOrphans() {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, field := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + field + "/comm")
			name := strings.TrimSpace(string(comm))
			if pid, err := strconv.Atoi(field); err == nil && name != "criu" && name != "unshare" && !alive(pid) {
				unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}

// Go lets a workload check itself, and fails unless it passes and exits with 0.
func (target *Target) Go() {
	target.t.Helper()
	target.Signal()
	target.Verdict()
}

// Signal creates the file the workload waits for.
func (target *Target) Signal() {
	target.t.Helper()
	if err := os.WriteFile(filepath.Join(target.Dir, "go"), nil, 0o644); err != nil {
		target.t.Fatal(err)
	}
}

// Verdict waits for the workload's own verdict and its end.
func (target *Target) Verdict() {
	target.t.Helper()
	known := target.tree // the root may have ended, and leave children
	target.tree = append(target.Tree(), known...)
	target.await("verdict", func() bool {
		_, err := os.Stat(filepath.Join(target.Dir, "verdict"))
		return err == nil || !target.Alive()
	})
	var status unix.WaitStatus
	target.await("end of the workload", func() bool {
		pid, err := unix.Wait4(target.Pid, &status, unix.WNOHANG, nil)
		return pid == target.Pid || errors.Is(err, unix.ECHILD)
	})
	if got := target.read("verdict"); got != "PASS" || status != 0 {
		target.t.Fatalf("verdict %q, wait status %#x; stderr: %s", got, int(status), target.read("stderr"))
	}
}

// Rewind takes back the files by which a workload was told to go on, for a
// second restore of the same images.
func (target *Target) Rewind() {
	for _, name := range []string{"go", "verdict"} {
		os.Remove(filepath.Join(target.Dir, name))
	}
}

// Kill ends what is left of the tree, by pid, and reaps it.
func (target *Target) Kill() {
	pids := append([]int(nil), target.tree...)
	if target.Alive() {
		pids = append(target.Tree(), pids...)
	}
	for _, pid := range pids {
		if ours(pid) {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	for _, pid := range append(pids, target.Pid) {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil || got == pid {
				break
			}
			reapOrphans() // an init ends after all others in its namespace
		}
	}
}

// ours guards against a pid that was taken by somebody else meanwhile: a task
// of the target is a descendant of the test.
func ours(pid int) bool {
	for depth := 0; pid > 0 && depth < 4096; depth++ {
		if pid == os.Getpid() {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, _ = strconv.Atoi(fields[1])
	}
	return false
}

var subreaper sync.Once

// becomeSubreaper makes orphans (tasks restored detached) children of the test.
func becomeSubreaper(t testing.TB) {
	subreaper.Do(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			t.Fatalf("PR_SET_CHILD_SUBREAPER: %v", err)
		}
	})
}

// Result is how a command ended.
type Result struct {
	Args   []string
	Code   int
	Stdout string
	Stderr string
	Wall   time.Duration
	MaxRSS int64 // KiB
}

// Run executes a command with a bound in time.
func Run(t testing.TB, argv ...string) Result {
	t.Helper()
	becomeSubreaper(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // it tells what it is waiting for
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	result := Result{Args: argv, Stdout: stdout.String(), Stderr: stderr.String(), Wall: time.Since(start)}
	if cmd.ProcessState == nil {
		t.Fatalf("run %s: %v", argv[0], err)
	}
	result.Code = cmd.ProcessState.ExitCode()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		result.MaxRSS = usage.Maxrss
	}
	if ctx.Err() != nil {
		t.Fatalf("%s hung for %v; stderr: %s", strings.Join(argv, " "), patience, result.Stderr)
	}
	return result
}

// Must runs a command of criu's command line that has to succeed; log is the
// file whose errors are shown when it does not.
func Must(t testing.TB, log string, argv ...string) Result {
	t.Helper()
	result := Run(t, argv...)
	if result.Code != 0 {
		t.Fatalf("%s: exit status %d\nstderr: %s\nlog:\n%s", strings.Join(argv, " "), result.Code, result.Stderr, errorsOf(log))
	}
	return result
}

// errorsOf returns the error and warning lines of a log.
func errorsOf(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for _, line := range strings.Split(string(b), "\n") {
		if strings.Contains(line, "Error") || strings.Contains(line, "Warn") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// Dump dumps a target with a criu into images and proves that it is gone.
func (target *Target) Dump(criu, images string, extra ...string) Result {
	target.t.Helper()
	target.Tree()
	result := Must(target.t, filepath.Join(images, "dump.log"), append([]string{criu, "dump", "-t", strconv.Itoa(target.Pid),
		"-D", images, "-o", "dump.log", "-v4"}, slices.Concat(target.Options, extra)...)...)
	for _, arg := range extra {
		if arg == "--leave-running" || arg == "-R" || arg == "--leave-stopped" || arg == "-s" {
			return result
		}
	}
	target.Gone()
	return result
}

// Restore restores a target from images with a criu, detached.
func (target *Target) Restore(criu, images string, extra ...string) Result {
	target.t.Helper()
	result := Must(target.t, filepath.Join(images, "restore.log"), append([]string{criu, "restore", "-d",
		"-D", images, "-o", "restore.log", "-v4"}, slices.Concat(target.Options, extra)...)...)
	if !target.Alive() {
		target.t.Fatalf("restore succeeded, but pid %d is not there; %s", target.Pid, target.read("stderr"))
	}
	target.Tree()
	return result
}

// RequireRoot skips a test that needs what only root may do.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run make test as root")
	}
}
