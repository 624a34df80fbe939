package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestAutoDedup restores with --auto-dedup, which leaves nothing of the pages in the images.
func TestAutoDedup(t *testing.T) {
	RequireRoot(t)
	for _, extra := range [][]string{{"--auto-dedup"}, {"--auto-dedup", "--lazy-pages"}} {
		target, images := tools.StartWorkload(t, "memory"), t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images, extra...)
		target.await("empty pages files", func() bool { return stored(t, images) == 0 })
		target.Go()
	}
}

// stored is how many bytes of the pages files in a directory take space.
func stored(t *testing.T, images string) int64 {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(images, "pages-*.img"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no pages files: %v", err)
	}
	var sum int64
	for _, name := range files {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		sum += st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return sum
}
