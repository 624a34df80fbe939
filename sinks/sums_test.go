package sinks_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cryo/sinks"
)

// TestSums changes, removes and adds files of a set with checksums.
func TestSums(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string) error
		want   string // in the error; empty: there is none
	}{
		{"untouched", func(string) error { return nil }, ""},
		{"changed", func(dir string) error { return os.WriteFile(filepath.Join(dir, "pages-1.img"), []byte("x"), 0o600) }, "pages-1.img is not as it was dumped"},
		{"inventory changed", func(dir string) error { return os.WriteFile(filepath.Join(dir, "inventory.img"), []byte("x"), 0o600) }, "inventory.img is not"},
		{"removed", func(dir string) error { return os.Remove(filepath.Join(dir, "pagemap-1.img")) }, "pagemap-1.img"},
		{"added", func(dir string) error { return os.WriteFile(filepath.Join(dir, "seccomp.img"), nil, 0o600) }, "seccomp.img is not among"},
		{"no sums", func(dir string) error { return os.Remove(filepath.Join(dir, sinks.SumsName)) }, "has no checksums"},
		{"nonsense", func(dir string) error { return os.WriteFile(filepath.Join(dir, sinks.SumsName), []byte("../x"), 0o600) }, "no line of checksums"},
	} {
		dir := t.TempDir()
		writeMixed(t, newDir(t, dir, sinks.DirOptions{Checksum: true}))
		if err := c.change(dir); err != nil {
			t.Fatal(err)
		}
		err := sinks.Verify(openSet(t, dir), true)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
