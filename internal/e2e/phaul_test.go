package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8"
	"github.com/checkpoint-restore/go-criu/v8/phaul"
	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// hauler is both sides of a live migration by go-criu's phaul: what its users write themselves. The tree is restored while the
// original stands still, which takes a pid namespace.
type hauler struct {
	criu.NoNotify
	server *phaul.Server
	dir    string // of the last dump
}

// DumpCopyRestore implements phaul.Local.
func (h *hauler) DumpCopyRestore(c *criu.Criu, cfg phaul.Config, last string) error {
	dir, err := os.Open(h.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return c.Dump(&rpc.CriuOpts{
		Pid: &cfg.Pid, LogLevel: new(int32(4)), LogFile: new("dump.log"), ImagesDirFd: new(int32(dir.Fd())),
		TrackMem: new(true), ParentImg: &last, Ps: &rpc.CriuPageServerInfo{Fd: new(int32(cfg.Memfd))},
	}, h)
}

// PostDump implements criu.Notify: it adds the images of the dump to the pages the server has, and restores.
func (h *hauler) PostDump() error {
	to := h.server.LastImagesDir()
	names, err := filepath.Glob(filepath.Join(h.dir, "*.img"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Link(name, filepath.Join(to, filepath.Base(name))); err != nil {
			return err
		}
	}
	dir, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dir.Close()
	return h.server.GetCriu().Restore(&rpc.CriuOpts{
		LogLevel: new(int32(4)), LogFile: new("restore.log"), ImagesDirFd: new(int32(dir.Fd())),
	}, nil)
}

// TestPhaul migrates an init by go-criu's phaul, with pre-dumps and a page server, as go-criu's own test does.
func TestPhaul(t *testing.T) {
	RequireRoot(t)
	t.Setenv("PATH", filepath.Dir(tools.Criu)+":"+os.Getenv("PATH"))
	target, work := tools.startWorkload(t, true, "memory"), t.TempDir()
	for _, name := range []string{"client", "server", "dump"} {
		if err := os.Mkdir(filepath.Join(work, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	target.Tree()
	h := &hauler{dir: filepath.Join(work, "dump")}
	h.server, err = phaul.MakePhaulServer(phaul.Config{Pid: int32(target.Pid), Memfd: fds[1], Wdir: filepath.Join(work, "server")})
	if err != nil {
		t.Fatal(err)
	}
	client, err := phaul.MakePhaulClient(h, h.server, phaul.Config{Pid: int32(target.Pid), Memfd: fds[0], Wdir: filepath.Join(work, "client")})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Migrate(); err != nil {
		var logs strings.Builder
		names, _ := filepath.Glob(filepath.Join(work, "*", "*.log"))
		for _, name := range names {
			logs.WriteString(name + ":\n" + errorsOf(name) + "\n")
		}
		t.Fatalf("%v\n%s", err, logs.String())
	}
	target.Gone()
	target.Go()
}
