package actions

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// script writes a shell script that appends a line about its environment to out.
func script(t *testing.T, out, name, tail string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	body := fmt.Sprintf("#!/bin/sh\necho %s $CRTOOLS_SCRIPT_ACTION ${CRTOOLS_INIT_PID:-none} "+
		"$(test $CRTOOLS_IMAGE_DIR -ef %s && echo dir) >>%s\n%s\n", name, filepath.Dir(out), out, tail)
	if err := os.WriteFile(path, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	out := filepath.Join(dir.Name(), "out")
	r := &Runner{Scripts: []string{script(t, out, "a", ""), script(t, out, "b", "exit 3")}, ImageDir: dir}
	err = r.Run(t.Context(), PreDump)
	if err == nil || !strings.Contains(err.Error(), "/b failed at pre-dump: exit status 3") {
		t.Errorf("a failing script gave %v", err)
	}
	r.Scripts = r.Scripts[:1]
	r.SetInit(77)
	if err := r.Run(t.Context(), PostDump); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"b pre-dump none dir", "a pre-dump none dir", "a post-dump 77 dir"}
	if lines := strings.Split(strings.TrimSpace(string(got)), "\n"); !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
}

func TestRunRefusesAProgramThatIsNotThere(t *testing.T) {
	r := &Runner{Scripts: []string{"/nowhere/at/all"}}
	if err := r.Run(t.Context(), PreDump); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// told is a client that wants to know of phases only.
type told func(Phase, int) error

func (f told) Phase(_ context.Context, p Phase, pid int) error { return f(p, pid) }
func (told) External(context.Context) ([]string, error)        { return nil, nil }
func (told) PtyMaster(context.Context, *os.File) error         { return nil }

func TestNotifyComesFirstAndStopsThePhase(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	refuse := errors.New("no")
	r := &Runner{Scripts: []string{script(t, out, "a", "")}}
	r.Client = told(func(p Phase, pid int) error {
		if p != NetworkLock || pid != 5 {
			t.Errorf("told %s, %d", p, pid)
		}
		return refuse
	})
	r.SetInit(5)
	if err := r.Run(t.Context(), NetworkLock); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Error("the script ran although the client refused")
	}
}

func TestNoRunner(t *testing.T) {
	var r *Runner
	if err := r.Run(t.Context(), PreDump); err != nil {
		t.Error(err)
	}
}
