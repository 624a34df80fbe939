package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
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

func require(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s on this machine: apt-get install %s", name, filepath.Base(name))
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
	script = filepath.Join(dir, "keep")
	text := "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || cp -a '" + target.Dir + "' '" + filepath.Join(dir, "kept") + "'\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		target.t.Fatal(err)
	}
	return script, func() {
		target.t.Helper()
		kept, err := os.ReadDir(filepath.Join(dir, "kept"))
		if err != nil {
			target.t.Fatal(err)
		}
		for _, e := range kept {
			if !e.Type().IsRegular() {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, "kept", e.Name()))
			if err == nil {
				err = os.WriteFile(filepath.Join(target.Dir, e.Name()), b, 0o600) // the same inode, if it is still there
			}
			if err != nil {
				target.t.Fatal(err)
			}
		}
	}
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
