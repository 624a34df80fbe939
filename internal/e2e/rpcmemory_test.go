package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// TestRPCPreDumps dumps in three steps over one connection.
func TestRPCPreDumps(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "memory")
	sets := newChain(t, target)
	target.Tree()
	c := startSwrk(t)
	step := func(typ rpc.CriuReqType) string {
		images, _ := sets.next()
		o := optsFor(t, typ, images, target.Pid)
		o.TrackMem = new(true)
		if sets.sets > 1 {
			o.ParentImg = new(fmt.Sprintf("../%d", sets.sets-1))
		}
		c.must(c.ask(typ, o), typ, images)
		return images
	}
	step(rpcPreDump)
	step(rpcPreDump)
	if resp := c.ask(rpcVersion, nil); resp.GetSuccess() || unix.Errno(resp.GetCrErrno()) != unix.EBADRQC {
		t.Errorf("a question between pre-dumps: %v", resp)
	}
	if code := c.end(); code != 1 {
		t.Errorf("exit status %d", code)
	}
	c = startSwrk(t)
	step(rpcPreDump)
	images := step(rpcDump)
	if code := c.end(); code != 0 {
		t.Errorf("exit status %d: %s", code, c.said.String())
	}
	target.Gone()
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestRPCSinglePreDump leaves the connection after one pre-dump.
func TestRPCSinglePreDump(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "memory")
	sets := newChain(t, target)
	for _, typ := range []rpc.CriuReqType{rpc.CriuReqType_SINGLE_PRE_DUMP, rpcPreDump} {
		images, _ := sets.next()
		c := startSwrk(t)
		c.must(c.ask(typ, optsFor(t, typ, images, target.Pid)), typ, images)
		if code := c.end(); code != 0 {
			t.Errorf("%v: exit status %d: %s", typ, code, c.said.String())
		}
	}
	target.Go()
}

// TestRPCPageServer sends pages to a page server that another client has started, over a port and over a socket pair.
func TestRPCPageServer(t *testing.T) {
	RequireRoot(t)
	const child = rpc.CriuReqType_PAGE_SERVER_CHLD
	for _, paired := range []bool{false, true} {
		t.Run(fmt.Sprintf("paired=%v", paired), func(t *testing.T) {
			target, images := tools.StartWorkload(t, "memory"), t.TempDir()
			target.Tree()
			ends := make([]*os.File, 2)
			if paired {
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				for i := range ends {
					ends[i] = os.NewFile(uintptr(fds[i]), "page server")
					defer ends[i].Close()
				}
			}
			server := startSwrk(t, ends[0])
			o := optsFor(t, child, images, 0)
			ps := &rpc.CriuPageServerInfo{Address: new("127.0.0.1")}
			if paired {
				ps = &rpc.CriuPageServerInfo{Fd: new(int32(4))}
			}
			o.Ps = ps
			started := server.ask(child, o, keepOpen)
			server.must(started, rpc.CriuReqType_PAGE_SERVER, images) // as criu answers
			pid := started.GetPs().GetPid()
			if !alive(int(pid)) || started.GetPs().GetPort() == 0 != paired {
				t.Errorf("page server %v", started.GetPs())
			}

			c := startSwrk(t, ends[1])
			o = optsFor(t, rpcDump, images, target.Pid)
			ps.Port = started.GetPs().Port
			o.Ps = ps
			c.must(c.ask(rpcDump, o), rpcDump, images)
			c.end()
			target.Gone()
			const wait = rpc.CriuReqType_WAIT_PID
			ended := server.ask(wait, nil, func(r *rpc.CriuReq) { r.Pid = new(uint32(pid)) })
			server.must(ended, wait, images)
			if ended.GetStatus() != 0 {
				log, _ := os.ReadFile(filepath.Join(images, logOf(child)))
				t.Errorf("the page server ended with %#x: %s", ended.GetStatus(), log)
			}
			server.end()
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// TestRPCPageServerInBackground outlives its client.
func TestRPCPageServerInBackground(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "idle"), t.TempDir()
	server := startSwrk(t)
	const typ = rpc.CriuReqType_PAGE_SERVER
	o := optsFor(t, typ, images, 0)
	o.Ps = &rpc.CriuPageServerInfo{Address: new("127.0.0.1")}
	resp := server.ask(typ, o)
	server.must(resp, typ, images)
	if code := server.end(); code != 0 {
		t.Errorf("exit status %d: %s", code, server.said.String())
	}
	target.Dump(tools.Criu, images, "--page-server", "--address", "127.0.0.1", "--port", fmt.Sprint(resp.GetPs().GetPort()))
	target.await("end of the page server", func() bool {
		reapOrphans()
		return !alive(int(resp.GetPs().GetPid()))
	})
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestRPCSelfDump has a task ask for its own dump, and find the answer when it is restored.
func TestRPCSelfDump(t *testing.T) {
	RequireRoot(t)
	bin, path, images := tools.Workload(t, "selfdump"), startService(t), t.TempDir()
	target := Start(t, t.TempDir(), bin, path, images, "goes on")
	target.Verdict()
	images = t.TempDir()
	target = Start(t, t.TempDir(), bin, path, images)
	collect(target)
	if v := target.read("verdict"); v != "" {
		t.Fatal(v, errorsOf(filepath.Join(images, "dump.log")))
	}
	Must(t, filepath.Join(images, "restore.log"), tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4")
	target.Verdict() // it may have ended already
}
