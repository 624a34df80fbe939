package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

const (
	rpcDump    = rpc.CriuReqType_DUMP
	rpcRestore = rpc.CriuReqType_RESTORE
	rpcPreDump = rpc.CriuReqType_PRE_DUMP
	rpcVersion = rpc.CriuReqType_VERSION
)

func keepOpen(r *rpc.CriuReq) { r.KeepOpen = new(true) }

// TestRPCQuestions asks what changes nothing, several times over one connection.
func TestRPCQuestions(t *testing.T) {
	RequireRoot(t)
	c := startSwrk(t)
	v := c.ask(rpcVersion, nil, keepOpen)
	c.must(v, rpcVersion, "")
	if v.GetVersion().GetMajorNumber() != 4 || v.GetVersion().GetMinorNumber() != 2 || v.GetVersion().Gitid != nil {
		t.Errorf("version %v", v.GetVersion())
	}
	const features = rpc.CriuReqType_FEATURE_CHECK
	for _, asked := range []bool{true, false} {
		f := c.ask(features, nil, keepOpen, func(r *rpc.CriuReq) { r.Features = &rpc.CriuFeatures{PidfdStore: &asked} })
		c.must(f, features, "")
		if got := f.GetFeatures(); got.MemTrack == nil || got.LazyPages == nil || got.GetMemTrack() || got.GetPidfdStore() != asked {
			t.Errorf("asked %v: %v", asked, got)
		}
	}
	images := t.TempDir()
	for _, typ := range []rpc.CriuReqType{rpc.CriuReqType_CPUINFO_DUMP, rpc.CriuReqType_CPUINFO_CHECK} {
		c.must(c.ask(typ, optsFor(t, typ, images, 0), keepOpen), typ, images)
	}
	c.must(c.ask(rpcVersion, nil), rpcVersion, "") // and that is all
	if code := c.end(); code != 0 {
		t.Errorf("exit status %d: %s", code, c.said.String())
	}

	c = startSwrk(t)
	const check = rpc.CriuReqType_CHECK
	c.must(c.ask(check, optsFor(t, check, images, 0)), check, images)
	if log := errorsOf(filepath.Join(images, logOf(check))); log != "" {
		t.Errorf("log of the check: %s", log)
	}
}

// TestRPCRefusals sends what cannot be served: each gets one line that says why, and nothing happens.
func TestRPCRefusals(t *testing.T) {
	RequireRoot(t)
	images := t.TempDir()
	with := func(typ rpc.CriuReqType, change func(*rpc.CriuOpts)) func(*rpcClient) *rpc.CriuResp {
		return func(c *rpcClient) *rpc.CriuResp {
			o := optsFor(t, typ, images, os.Getpid())
			change(o)
			return c.ask(typ, o)
		}
	}
	for name, tc := range map[string]struct {
		ask   func(*rpcClient) *rpc.CriuResp
		errno unix.Errno
		want  string
		typ   rpc.CriuReqType
	}{
		"no request": {func(c *rpcClient) *rpc.CriuResp {
			c.sendRaw([]byte("\xff\xff\xff\xff"))
			resp, _ := c.receive()
			return resp
		}, unix.EBADRQC, "cannot be understood", rpc.CriuReqType_EMPTY},
		"no type": {func(c *rpcClient) *rpc.CriuResp {
			c.sendRaw([]byte("\x20\x01"))
			resp, _ := c.receive()
			return resp
		}, unix.EBADRQC, "cannot be understood", rpc.CriuReqType_EMPTY},
		"an answer": {func(c *rpcClient) *rpc.CriuResp { return c.ask(rpc.CriuReqType_NOTIFY, nil) },
			unix.EBADRQC, "NOTIFY are not served", rpc.CriuReqType_EMPTY},
		"another type": {func(c *rpcClient) *rpc.CriuResp { return c.ask(99, nil) },
			unix.EBADRQC, "99 are not served", rpc.CriuReqType_EMPTY},
		"no images": {with(rpcDump, func(o *rpc.CriuOpts) { o.ImagesDirFd = new(int32(-1)) }),
			unix.EBADRQC, "neither images_dir_fd nor images_dir", rpcDump},
		"a foreign descriptor": {with(rpcDump, func(o *rpc.CriuOpts) { o.ImagesDirFd = new(int32(1 << 20)) }),
			unix.EBADRQC, "images_dir_fd: descriptor 1048576 of the client", rpcDump},
		"a log elsewhere": {with(rpcDump, func(o *rpc.CriuOpts) { o.LogFile = new("../x") }),
			unix.EBADRQC, "log_file", rpcDump},
		"a missing task": {with(rpcDump, func(o *rpc.CriuOpts) { o.Pid = new(int32(1 << 30)) }),
			unix.ESRCH, "no task 1073741824", rpcDump},
		"what is not built": {with(rpcRestore, func(o *rpc.CriuOpts) { o.Root = new("/") }),
			0, "--root: not built yet", rpcRestore},
		"no set": {with(rpcRestore, func(*rpc.CriuOpts) {}), 0, "inventory.img", rpcRestore},
		"a request that ends": {func(c *rpcClient) *rpc.CriuResp { return c.ask(rpcDump, nil, keepOpen) },
			unix.EBADRQC, "keep_open", rpcDump},
		"a process of others": {func(c *rpcClient) *rpc.CriuResp {
			return c.ask(rpc.CriuReqType_WAIT_PID, nil, func(r *rpc.CriuReq) { r.Pid = new(uint32(1)) })
		}, unix.ECHILD, "wait for process 1", rpc.CriuReqType_WAIT_PID},
		"talk while standing still": {with(rpcDump, func(o *rpc.CriuOpts) { o.Pid, o.NotifyScripts = nil, new(true) }),
			unix.EBADRQC, "notify_scripts", rpcDump},
	} {
		c := startSwrk(t)
		resp := tc.ask(c)
		if resp == nil {
			t.Errorf("%s: no answer; stderr %s", name, c.said.String())
			continue
		}
		if resp.GetSuccess() || resp.GetType() != tc.typ || unix.Errno(resp.GetCrErrno()) != tc.errno ||
			!strings.Contains(resp.GetCrErrmsg(), tc.want) || strings.Contains(resp.GetCrErrmsg(), "\n") {
			t.Errorf("%s: %v %v errno %d %q, want %v, errno %d, %q", name, resp.GetType(), resp.GetSuccess(), resp.GetCrErrno(),
				resp.GetCrErrmsg(), tc.typ, tc.errno, tc.want)
		}
		if code := c.end(); code != 1 {
			t.Errorf("%s: exit status %d", name, code)
		}
	}
}

// TestRPCRefusalsAreLogged: drivers show the lines of the log that say Error.
func TestRPCRefusalsAreLogged(t *testing.T) {
	RequireRoot(t)
	images := t.TempDir()
	c := startSwrk(t)
	o := optsFor(t, rpcRestore, images, 0)
	o.Root = new("/") // as a container engine wants it
	if resp := c.ask(rpcRestore, o); resp.GetSuccess() {
		t.Fatal(resp)
	}
	c.end()
	if log := errorsOf(filepath.Join(images, logOf(rpcRestore))); strings.Count(log, "\n") != 0 || !strings.Contains(log, "Error") || !strings.Contains(log, "--root: not built yet") {
		t.Errorf("the log says %q", log)
	}
}

// TestRPCLongRequest sends a request that is larger than any real one.
func TestRPCLongRequest(t *testing.T) {
	RequireRoot(t)
	c := startSwrk(t)
	size := 4 << 20
	if err := unix.SetsockoptInt(c.socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size); err != nil {
		t.Skip("a larger packet cannot be sent: ", err)
	}
	c.sendRaw(make([]byte, size/8))
	resp, err := c.receive()
	if err != nil || resp.GetSuccess() || !strings.Contains(resp.GetCrErrmsg(), "bytes") {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestRPCDumpRestore moves a workload with all phases told, and has it as a child in the end.
func TestRPCDumpRestore(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "tree"), t.TempDir()
	target.Tree()

	c := startSwrk(t)
	o := optsFor(t, rpcDump, images, target.Pid)
	o.NotifyScripts = new(true)
	c.must(c.ask(rpcDump, o), rpcDump, images)
	if code := c.end(); code != 0 { // before the test collects whatever has ended
		t.Errorf("exit status %d: %s", code, c.said.String())
	}
	target.Gone()
	if want := []string{"pre-dump", "query-ext-files", "post-dump"}; !slices.Equal(c.told, want) {
		t.Errorf("told %q, want %q", c.told, want)
	}

	c = startSwrk(t)
	o = optsFor(t, rpcRestore, images, 0)
	o.NotifyScripts, o.RstSibling = new(true), new(true)
	resp := c.ask(rpcRestore, o)
	c.must(resp, rpcRestore, images)
	if got := int(resp.GetRestore().GetPid()); got != target.Pid || parentOf(t, got) != os.Getpid() {
		t.Errorf("restored as %d, a child of %d; want %d, a child of %d", got, parentOf(t, got), target.Pid, os.Getpid())
	}
	pid := "(" + strconv.Itoa(target.Pid) + ")"
	if want := []string{"pre-restore", "post-restore" + pid, "pre-resume", "post-resume"}; !slices.Equal(c.told, want) {
		t.Errorf("told %q, want %q", c.told, want)
	}
	c.end()
	target.Go()
}

// TestRPCClientSaysNo has the client refuse each phase, or leave: the target goes on, or there is none, and nothing is left.
func TestRPCClientSaysNo(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "tree")
	target.Tree()
	dump := func(t *testing.T, refuse, leave string) (*rpcClient, *rpc.CriuResp, string) {
		images := t.TempDir()
		c := startSwrk(t)
		c.refuse, c.leave = refuse, leave
		o := optsFor(t, rpcDump, images, target.Pid)
		o.NotifyScripts = new(true)
		return c, c.ask(rpcDump, o), images
	}
	valid := func(images string) bool {
		_, err := os.Stat(filepath.Join(images, "inventory.img"))
		return err == nil
	}
	for _, phase := range []string{"pre-dump", "query-ext-files", "post-dump"} {
		c, resp, images := dump(t, phase, "")
		if resp.GetSuccess() || !strings.Contains(resp.GetCrErrmsg(), phase) {
			t.Errorf("%s refused: %v", phase, resp)
		}
		c.end()
		if got := valid(images); got != (phase == "post-dump") { // a set that is complete stays
			t.Errorf("%s refused: a set is there: %v", phase, got)
		}
		c, _, images = dump(t, "", phase)
		if code := c.end(); code != 1 {
			t.Errorf("the client leaves at %s: exit status %d", phase, code)
		}
		if got := valid(images); got != (phase == "post-dump") {
			t.Errorf("the client leaves at %s: a set is there: %v", phase, got)
		}
		if !target.Alive() {
			t.Fatalf("the target did not survive %s", phase)
		}
	}
	images := t.TempDir()
	target.Dump(tools.Criu, images)
	for _, phase := range []string{"pre-restore", "post-restore", "pre-resume"} {
		for _, leaves := range []bool{false, true} {
			c := startSwrk(t)
			c.refuse = phase
			if leaves {
				c.refuse, c.leave = "", phase
			}
			o := optsFor(t, rpcRestore, images, 0)
			o.NotifyScripts = new(true)
			if resp := c.ask(rpcRestore, o); !leaves && (resp.GetSuccess() || !strings.Contains(resp.GetCrErrmsg(), phase)) {
				t.Errorf("%s refused: %v", phase, resp)
			}
			if code := c.end(); code != 1 {
				t.Errorf("%s: exit status %d", phase, code)
			}
			target.await("end of a tree whose restore was refused at "+phase, func() bool {
				reapOrphans()
				_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(target.Pid)))
				return err != nil
			})
		}
	}
	target.Restore(tools.Criu, images)
	target.Go()
}
