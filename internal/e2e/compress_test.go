package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCompress dumps every workload compressed, and restores it plainly and lazily.
func TestCompress(t *testing.T) {
	for _, way := range []struct{ dump, restore string }{
		{"--compress", "--restore-detached"},
		{"--compress=zstd", "--lazy-pages"},
	} {
		t.Run(way.dump, func(t *testing.T) {
			eachWorkload(t, func(t *testing.T, start func() *Target) {
				target, images := start(), t.TempDir()
				target.Dump(tools.Criu, images, way.dump)
				target.Restore(tools.Criu, images, way.restore)
				if way.restore == "--lazy-pages" {
					target.allPages(t)
				}
				target.Go()
			})
		})
	}
}

// TestCritCompress compresses a set after the dump, and expands it again.
func TestCritCompress(t *testing.T) {
	RequireRoot(t)
	crit := filepath.Join(filepath.Dir(tools.Criu), "crit")
	for _, verbs := range [][]string{{"compress"}, {"compress", "decompress"}} {
		target, images := tools.StartWorkload(t, "memory"), t.TempDir()
		target.Dump(tools.Criu, images)
		for _, verb := range verbs {
			if out, err := exec.Command(crit, verb, images).CombinedOutput(); err != nil {
				t.Fatalf("crit %s: %v: %s", verb, err, out)
			}
		}
		target.Restore(tools.Criu, images)
		target.Go()
	}
}
