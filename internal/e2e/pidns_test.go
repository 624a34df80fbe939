package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cryo/internal/procfs"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// eachInit runs body on a fresh instance of every workload as the init of a pid namespace.
func eachInit(t *testing.T, body func(t *testing.T, target *Target)) {
	RequireRoot(t)
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			target := tools.startWorkload(t, true, w.name, w.args...)
			target.Options = w.options
			body(t, target)
		})
	}
}

// TestInit dumps and restores inits of pid namespaces, twice in a row. All ids are the same in there, and others outside.
func TestInit(t *testing.T) {
	eachInit(t, func(t *testing.T, target *Target) {
		before := idsWithin(target)
		for range 2 {
			old, images := target.Pid, t.TempDir()
			target.Dump(tools.Criu, images)
			target.Restore(tools.Criu, images)
			if target.Pid == old {
				t.Errorf("it has its old pid %d", old)
			}
		}
		if d := cmp.Diff(before, idsWithin(target)); d != "" {
			t.Error("ids (-was +is):\n", d)
		}
		target.Go()
	})
}

// TestInitRunsOn lets a dump that leaves inits running change nothing.
func TestInitRunsOn(t *testing.T) {
	eachInit(t, func(t *testing.T, target *Target) {
		target.Dump(tools.Criu, t.TempDir(), "--leave-running")
		target.Go()
	})
}

// idsWithin lists a tree's ids of processes, groups, sessions and threads as they are in its own pid namespace.
func idsWithin(target *Target) (lines []string) {
	for _, pid := range target.Tree() {
		dir, err := procfs.OpenTask(pid)
		if err != nil {
			continue
		}
		tids, _ := dir.Threads()
		for _, tid := range tids {
			name, _ := dir.Read("task/" + strconv.Itoa(tid) + "/comm")
			if strings.HasPrefix(string(name), "iou-") { // the kernel's own, which come and go
				continue
			}
			if s, err := dir.ThreadStatus(tid); err == nil {
				last := func(ids []int) int { return ids[len(ids)-1] }
				lines = append(lines, fmt.Sprint(last(s.NStgid), last(s.NSpid), last(s.NSpgid), last(s.NSsid)))
			}
		}
		dir.Close()
	}
	slices.Sort(lines)
	return lines
}

// jobs is a shell as init: a pipeline that counts, whose first part and group leader has ended; a session whose leader has
// ended; a job that is stopped; a zombie that nobody collects. It makes no more processes then, and leaves six.
const jobs = `
set -m
true | (while read -t 0.02 <> fifo; [ $? != 0 ]; do n=$((n+1)); echo $n > count; done) &
(setsid sh -c 'sleep 1000 & exit' &)
sleep 1001 &
kill -STOP $!
sh -c 'sleep 0 & exec sleep 1002' &
touch ready
read <> wait
`

// TestInitWithJobs dumps and restores a shell with jobs that is the init of a pid namespace; lets it run on; and runs it twice
// at the same time, in two namespaces.
func TestInitWithJobs(t *testing.T) {
	RequireRoot(t)
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	dir := t.TempDir()
	for _, name := range []string{"fifo", "wait"} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	target := start(t, dir, true, bash, "-c", jobs)
	target.AwaitFile("ready")
	var before []string
	target.await("six processes as they are to stay", func() bool {
		before = idsWithin(target)
		return len(before) == 6 && settledJobs(target)
	})
	counts := func() {
		t.Helper()
		was := target.read("count")
		target.await("more in the count file", func() bool { now := target.read("count"); return now != was && now != "" })
	}
	same := func() {
		t.Helper()
		if d := cmp.Diff(before, idsWithin(target)); d != "" {
			t.Error("ids (-was +is):\n", d)
		}
		counts()
	}
	images := t.TempDir()
	target.Dump(tools.Criu, images, "--leave-running")
	same()

	// A second one at the same time.
	pidfile := filepath.Join(t.TempDir(), "pid")
	Must(t, filepath.Join(images, "restore.log"), tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4", "--pidfile", pidfile)
	text, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	second := &Target{t: t, Dir: dir, Pid: pid}
	t.Cleanup(second.Kill)
	if d := cmp.Diff(before, idsWithin(second)); d != "" {
		t.Error("ids of the second one (-was +is):\n", d)
	}
	second.Kill()
	second.Gone()
	same()

	for range 2 {
		images := t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images)
		same()
	}
}

// settledJobs says whether only those jobs are left that stay: one zombie, whose parent does not collect it, and no session
// leader but the init.
func settledJobs(target *Target) bool {
	dead := 0
	for _, pid := range target.Tree() {
		if pid != target.Pid && strings.Fields(statusField(pid, "NSsid") + " 0")[1] == strings.Fields(statusField(pid, "NSpid") + " 0")[1] {
			return false
		}
		if strings.HasPrefix(statusField(pid, "State"), "Z") {
			parent, _ := strconv.Atoi(statusField(pid, "PPid"))
			if statusField(parent, "Name") != "sleep" {
				return false
			}
			dead++
		}
	}
	return dead == 1
}

// TestInitOfPeer has criu 4.2 restore what this dumps, and the reverse.
func TestInitOfPeer(t *testing.T) {
	RequireRoot(t)
	if tools.Peer == "" {
		t.Skip("CRIU_PEER names no criu")
	}
	for _, name := range []string{"idle", "threads", "tree", "signals", "memory"} {
		for way, criu := range map[string][2]string{"peer restores": {tools.Criu, tools.Peer}, "peer dumps": {tools.Peer, tools.Criu}} {
			t.Run(name+", "+way, func(t *testing.T) {
				target, images := tools.startWorkload(t, true, name), t.TempDir()
				target.Dump(criu[0], images)
				target.Restore(criu[1], images)
				target.Go()
			})
		}
	}
}

// TestKilledRestoreOfInit kills the tool at random instants of a restore: all of the namespace is there, or nothing.
func TestKilledRestoreOfInit(t *testing.T) {
	RequireRoot(t)
	target, images := tools.startWorkload(t, true, "ring", "8"), t.TempDir()
	size := len(target.Tree())
	target.Dump(tools.Criu, images)
	whole := target.Restore(tools.Criu, images).Wall
	target.Kill()
	target.Gone()
	random := rand.New(rand.NewPCG(1, 2))
	for range killRounds(12) {
		killAt(t, time.Duration(random.Int64N(int64(whole+whole/4))), tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4")
		target.await("tree that is whole or gone", func() bool {
			reapOrphans()
			if !target.Alive() {
				return len(workingIn(target.Dir)) == 0
			}
			tree := target.Tree()
			return len(tree) == size && !slices.ContainsFunc(tree, func(pid int) bool { return statusField(pid, "TracerPid") != "0" })
		})
		target.Kill()
		target.Gone()
	}
	target.Restore(tools.Criu, images)
	target.Go()
}

// workingIn lists the processes whose working directory is dir.
func workingIn(dir string) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range all {
		if cwd, _ := os.Readlink(proc + "/cwd"); cwd == dir {
			pids = append(pids, filepath.Base(proc))
		}
	}
	return pids
}

// TestOtherPIDNamespaces refuses trees that are in more than one, and those of a namespace whose init is not in them.
func TestOtherPIDNamespaces(t *testing.T) {
	RequireRoot(t)
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("no unshare")
	}
	refuse := func(t *testing.T, pid int, want string) {
		t.Helper()
		r := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(pid), "-D", t.TempDir(), "-o", "dump.log", "--shell-job")
		if r.Code == 0 || !strings.Contains(r.Stderr, want) {
			t.Errorf("exit status %d, %q; want %q", r.Code, r.Stderr, want)
		}
	}
	target := Start(t, t.TempDir(), "/bin/sh", "-c", "unshare --pid --fork --kill-child sh -c 'sleep 1000 & touch ready; wait' & wait")
	target.AwaitFile("ready")
	refuse(t, target.Pid, "is in another pid namespace than the root of the tree")
	for _, pid := range target.Tree() {
		if ids := strings.Fields(statusField(pid, "NSpid")); len(ids) > 1 && ids[len(ids)-1] != "1" {
			refuse(t, pid, "of a pid namespace of its own")
		}
	}
}

// TestUTSNamespace dumps and restores a shell that has given its own UTS namespace names, by this and by the peer.
func TestUTSNamespace(t *testing.T) {
	RequireRoot(t)
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("no unshare")
	}
	const script = `
cd /proc/sys/kernel
echo restored-machine > hostname && echo restored-domain > domainname || exit
echo > $OLDPWD/ready
until [ -e $OLDPWD/go ]; do sleep 0.01; done
read host < hostname; read domain < domainname
echo $host $domain > $OLDPWD/verdict.tmp
mv $OLDPWD/verdict.tmp $OLDPWD/verdict
`
	before, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for way, criu := range map[string][2]string{"own": {tools.Criu, tools.Criu}, "peer restores": {tools.Criu, tools.Peer}, "peer dumps": {tools.Peer, tools.Criu}} {
		t.Run(way, func(t *testing.T) {
			if criu[0] == "" || criu[1] == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			target, images := Start(t, t.TempDir(), unshare, "--uts", "/bin/sh", "-c", script), t.TempDir()
			target.AwaitFile("ready")
			target.Dump(criu[0], images)
			target.Restore(criu[1], images)
			target.Signal()
			target.await("verdict", func() bool { return target.read("verdict") != "" })
			if got := target.read("verdict"); got != "restored-machine restored-domain" {
				t.Errorf("the names are %q", got)
			}
		})
	}
	if after, err := os.Hostname(); err != nil || after != before {
		t.Errorf("this machine is called %q, was %q: %v", after, before, err)
	}
}
