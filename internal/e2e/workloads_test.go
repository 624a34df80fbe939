package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

var tools *Tools

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cryo-e2e-")
	if err != nil {
		panic(err)
	}
	if tools, err = NewTools(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// workload is what is dumped and restored in every mode.
type workload struct {
	name      string
	args      []string
	options   []string // of both dump and restore
	peerFails string   // why criu 4.2 itself cannot restore it, empty when it can
}

func (w workload) start(t *testing.T) *Target {
	target := tools.StartWorkload(t, w.name, w.args...)
	target.Options = w.options
	return target
}

var workloads = []workload{
	{name: "idle"},
	{name: "threads", args: []string{"8"}},
	{name: "files"},
	{name: "manyfds", args: []string{"20", "300"}},
	{name: "unix"},
	{name: "manysocks"},
	{name: "unixfine", peerFails: "criu's images hold no senders of messages, and its restore no names of accepted connections"},
	{name: "unixmoved", peerFails: "criu takes a socket whose file was renamed for one without a file"},
	{name: "inet", options: []string{"--tcp-established"}, peerFails: "criu dumps no listeners of MPTCP, and has no shutdown of reading"},
	{name: "netns", options: []string{"--tcp-established"}},
	{name: "tuns", args: []string{"own"}},
	{name: "tuns", peerFails: "criu dumps TUN and TAP devices of a network namespace only that it dumps whole"},
	{name: "netlink"},
	{name: "netlink", args: []string{"fine"}, peerFails: "criu refuses groups beyond 32 and those of an unbound socket, and forgets options of netlink"},
	{name: "packets"},
	{name: "packets", args: []string{"fine"}, peerFails: "criu forgets flags of fanout groups and young options, and refuses to be a member twice"},
	{name: "signals"},
	{name: "restarts", peerFails: "criu has calls that it interrupted return EINTR"},
	{name: "ptys", peerFails: "criu joins lines that wait at a terminal, and forgets what was written before a slave was closed"},
	{name: "epolls"},
	{name: "linked", options: []string{"--link-remap"}},
	{name: "tree"},
	{name: "forks", args: []string{"10", "20"}},
	{name: "orphan", peerFails: "criu hands the orphan to init, not to its subreaper"},
	{name: "memory"},
	{name: "instant", args: []string{"16", "2"}},
	{name: "sharedmm", peerFails: "criu dumps no processes that share their memory"},
	{name: "procfiles"},
	{name: "procfiles", args: []string{"thread"}, peerFails: "criu looks for the dead thread in its process"},
	{name: "partshared"},
	{name: "partshared", args: []string{"fine"}, peerFails: "criu makes shared memory end where the last mapping of it does"},
	{name: "manymaps"},
	{name: "mapkinds"},
	{name: "pidfds"},
	{name: "userfaults", peerFails: "criu dumps no userfaultfds"},
	{name: "userfaults", args: []string{"24"}, peerFails: "criu dumps no userfaultfds"},
	{name: "bpfmaps", peerFails: "criu makes two maps of one that is open twice"},
	{name: "watches", peerFails: "criu's restore leaves events of its own and makes IN_ONESHOT watches lasting ones"},
	{name: "locks", options: []string{"--file-locks"}, peerFails: "criu signals once more that a lease is breaking"},
	{name: "sysv", peerFails: "criu keeps SysV memory only of an IPC namespace it dumps whole"},
	{name: "clock"},
	{name: "ticks"},
	{name: "iouring", peerFails: "criu dumps no io_uring"},
	{name: "iouring", args: []string{"nobody"}, peerFails: "criu dumps no io_uring"},
	{name: "ring", args: []string{"20"}},
}

// eachWorkload runs body on a fresh instance of every workload.
func eachWorkload(t *testing.T, body func(t *testing.T, start func() *Target)) {
	RequireRoot(t)
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			body(t, func() *Target { return w.start(t) })
		})
	}
}

func TestDumpRestore(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target, images := start(), t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images)
		target.Go()
	})
}

func TestTwiceInARow(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target := start()
		for range 2 {
			images := t.TempDir()
			target.Dump(tools.Criu, images)
			target.Restore(tools.Criu, images)
		}
		target.Go()
	})
}

func TestLeaveRunningAndRollBack(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target, images := start(), t.TempDir()
		target.Dump(tools.Criu, images, "--leave-running")
		if !target.Alive() {
			t.Fatal("the target did not survive --leave-running")
		}
		target.Kill()
		target.Restore(tools.Criu, images)
		target.Go()
	})
}

// TestLeaveRunning lets the target itself say that a dump changed nothing.
func TestLeaveRunning(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target := start()
		target.Dump(tools.Criu, t.TempDir(), "--leave-running")
		target.Go()
	})
}

func TestPeerRestoresOurs(t *testing.T) {
	eachPeerWorkload(t, func(t *testing.T, start func() *Target) {
		target, images := start(), t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Peer, images)
		target.Go()
	})
}

func TestOursRestoresPeers(t *testing.T) {
	eachPeerWorkload(t, func(t *testing.T, start func() *Target) {
		target, images := start(), t.TempDir()
		target.Dump(tools.Peer, images)
		target.Restore(tools.Criu, images)
		target.Go()
	})
}

// eachPeerWorkload is eachWorkload for what criu 4.2 can do as well.
func eachPeerWorkload(t *testing.T, body func(t *testing.T, start func() *Target)) {
	RequireRoot(t)
	if tools.Peer == "" {
		t.Skip("CRIU_PEER names no criu binary")
	}
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			if w.peerFails != "" {
				t.Skip("not a task for the peer: " + w.peerFails)
			}
			body(t, func() *Target { return w.start(t) })
		})
	}
}

// TestIdsWrapAround takes a task whose threads have lower ids than its leader:
// ids start anew when they have run out.
func TestIdsWrapAround(t *testing.T) {
	RequireRoot(t)
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	if err == nil {
		err = os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(last-40)), 0)
	}
	if err != nil {
		t.Skipf("cannot choose the next pid: %v", err)
	}
	target, images := tools.StartWorkload(t, "threads", "100"), t.TempDir()
	target.Dump(tools.Criu, images)
	target.Restore(tools.Criu, images)
	target.Go()
}
