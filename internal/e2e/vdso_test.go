package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestOtherVDSO restores a task with the vdso of another kernel: one in which a function has another name.
func TestOtherVDSO(t *testing.T) {
	RequireRoot(t)
	const from, to = "__vdso_getcpu\x00", "__vdso_gotcpu\x00"
	target, images := tools.StartWorkload(t, "clock"), t.TempDir()
	target.Dump(tools.Criu, images)
	pages := filepath.Join(images, "pages-1.img")
	b, err := os.ReadFile(pages)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(from)) {
		t.Skip("the vdso of this kernel has no __vdso_getcpu")
	}
	if err := os.WriteFile(pages, bytes.ReplaceAll(b, []byte(from), []byte(to)), 0o600); err != nil {
		t.Fatal(err)
	}
	target.Restore(tools.Criu, images)
	again := t.TempDir()
	target.Dump(tools.Criu, again)
	target.Restore(tools.Criu, again)
	target.Go()
}
