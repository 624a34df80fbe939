package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// remaps lists the links that dumps have left in the target's directory.
func (target *Target) remaps() []string {
	target.t.Helper()
	names, err := filepath.Glob(filepath.Join(target.Dir, "link_remap.*"))
	if err != nil {
		target.t.Fatal(err)
	}
	return names
}

// TestLinkRemap dumps a task with files that have only names it does not know. The dump gives them one, which lasts until a
// restore has succeeded, not only begun.
func TestLinkRemap(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "linked"), t.TempDir()
	if r := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "-v4"); r.Code == 0 || !strings.Contains(r.Stderr, "--link-remap") {
		t.Errorf("without the option: exit status %d, %s", r.Code, r.Stderr)
	}
	if left := target.remaps(); len(left) > 0 {
		t.Errorf("a dump that was refused left %q", left)
	}
	target.Dump(tools.Criu, images, "--link-remap")
	for _, phase := range []string{"pre-restore", "post-restore", "pre-resume"} {
		r := Run(t, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log", "-v4", "--action-script", failAtPhase(t, phase))
		if r.Code == 0 {
			t.Fatalf("the restore did not fail at %s", phase)
		}
		if left := target.remaps(); len(left) == 0 {
			t.Fatalf("a restore that failed at %s took the name away", phase)
		}
	}
	target.Restore(tools.Criu, images)
	if left := target.remaps(); len(left) > 0 {
		t.Errorf("the restore left %q", left)
	}
	target.Go()
}

// failAtPhase is an action script that fails at one phase.
func failAtPhase(t *testing.T, phase string) (script string) {
	t.Helper()
	script = filepath.Join(t.TempDir(), "fail")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != "+phase+" ]\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// TestForceIrmap dumps watches whose files are looked up by scanning, as where their handles cannot be opened.
func TestForceIrmap(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "watches"), t.TempDir()
	target.Dump(tools.Criu, images, "--force-irmap", "--irmap-scan-path", target.Dir)
	target.Restore(tools.Criu, images)
	target.Go()
}
