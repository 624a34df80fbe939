package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// program is an unmodified program of the distribution (or, for Go, of the
// toolchain), with a script under testdata/programs that speaks the workloads'
// protocol.
type program struct {
	name  string
	needs string // what must be in PATH, and the package that brings it
	start func(t *testing.T) *Target
}

func script(interpreter string, args ...string) func(*testing.T) *Target {
	return func(t *testing.T) *Target {
		argv := append([]string{require(t, interpreter)}, args...)
		for i, arg := range argv[1:] {
			if abs, err := filepath.Abs(filepath.Join("..", "..", "testdata", "programs", arg)); err == nil {
				if _, err := os.Stat(abs); err == nil {
					argv[i+1] = abs
				}
			}
		}
		dir := t.TempDir()
		if filepath.Base(interpreter) == "bash" {
			argv = append(argv, dir)
		}
		return Start(t, dir, argv...)
	}
}

var programs = []program{
	{"bash pipeline", "bash", script("/bin/bash", "pipeline.sh")},
	{"python3", "python3", script("/usr/bin/python3", "threads.py")},
	{"python3 processes", "python3", script("/usr/bin/python3", "processes.py")},
	{"perl", "perl", script("/usr/bin/perl", "state.pl")},
	{"200 threads", "gcc", func(t *testing.T) *Target { return tools.StartWorkload(t, "threads", "200") }},
	{"ring of 300", "gcc", func(t *testing.T) *Target { return tools.StartWorkload(t, "ring", "300") }},
	{"256 MiB", "gcc", func(t *testing.T) *Target { return tools.StartWorkload(t, "bigmem", "256") }},
	{"go", "go", startGoroutines},
}

func startGoroutines(t *testing.T) *Target {
	bin := filepath.Join(t.TempDir(), "goroutines")
	build := exec.Command(require(t, "go"), "build", "-o", bin, "../../testdata/programs/goroutines")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return Start(t, t.TempDir(), bin)
}

// packages are those of Debian that are not called like the program they bring.
var packages = map[string]string{
	"redis-cli": "redis-tools", "nginx": "nginx-light", "psql": "postgresql", "node": "nodejs", "java": "openjdk-17-jre-headless",
	"script": "bsdutils", "logger": "bsdutils", "setpriv": "util-linux", "vi": "vim-tiny", "sshd": "openssh-server",
	"ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsyslogd": "rsyslog",
	"dnsmasq": "dnsmasq-base", "dbus-send": "dbus-bin", "mariadbd": "mariadb-server-core",
	"mariadb-install-db": "mariadb-server-core", "mariadb": "mariadb-client-core",
}

// require returns the path of a program, or skips the test.
func require(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		pkg := filepath.Base(name)
		if p := packages[pkg]; p != "" {
			pkg = p
		}
		t.Skipf("no %s on this machine: apt-get install %s", name, pkg)
	}
	return path
}

// TestPrograms takes every program through a dump and restore twice in a row,
// then a snapshot that leaves it running, and a roll-back to that.
func TestPrograms(t *testing.T) {
	RequireRoot(t)
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			require(t, p.needs)
			target := p.start(t)
			target.AwaitFile("ready")
			for range 2 {
				images := t.TempDir()
				target.Dump(tools.Criu, images)
				target.Restore(tools.Criu, images)
			}
			images := t.TempDir()
			keep, rollBack := target.keepFiles()
			target.Dump(tools.Criu, images, "--leave-running", "--action-script", keep)
			target.Kill()
			rollBack()
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// keepFiles returns an action script that copies the target's files while it
// stands still, and a function that puts them back as they were: a program
// that runs on after its dump writes to them, and a roll-back needs both.
func (target *Target) keepFiles() (script string, rollBack func()) {
	target.t.Helper()
	dir := target.t.TempDir()
	script, kept := filepath.Join(dir, "keep"), filepath.Join(dir, "kept")
	text := "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || cp -a '" + target.Dir + "' '" + kept + "'\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		target.t.Fatal(err)
	}
	return script, func() {
		target.t.Helper()
		err := filepath.WalkDir(kept, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(kept, path)
			if err != nil {
				return err
			}
			return putBack(path, filepath.Join(target.Dir, rel))
		})
		if err != nil {
			target.t.Fatal(err)
		}
	}
}

// putBack gives a file the contents and the owner of a copy; it stays the same file, if it is still there.
func putBack(copied, path string) error {
	b, err := os.ReadFile(copied)
	if err != nil {
		return err
	}
	st, err := os.Stat(copied)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, st.Mode()); err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	return os.Chown(path, int(owner.Uid), int(owner.Gid))
}

// TestBuildInFlight catches a parallel build at several points: compilers come
// and go, and vfork children share their parents' memory while it happens.
func TestBuildInFlight(t *testing.T) {
	RequireRoot(t)
	require(t, "gcc")
	dir := t.TempDir()
	mk, err := filepath.Abs("../../testdata/programs/build.mk")
	if err != nil {
		t.Fatal(err)
	}
	target := Start(t, dir, require(t, "make"), "-s", "-j4", "-f", mk)
	for _, caughtAt := range []string{"unit3.c", "unit6.o", "unit14.o"} {
		target.AwaitFile(caughtAt)
		images := t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images)
	}
	target.Verdict()
}
