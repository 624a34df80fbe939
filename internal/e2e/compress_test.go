package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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

// TestCompressFaster trades size for speed, which zstd does not.
func TestCompressFaster(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "memory"), t.TempDir()
	r := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "--compress=zstd", "--compress-acceleration", "8")
	if r.Code == 0 || !strings.Contains(r.Stderr, "--compress-acceleration is a choice of LZ4") {
		t.Errorf("with zstd: exit status %d: %s", r.Code, r.Stderr)
	}
	target.Dump(tools.Criu, images, "--compress", "--compress-acceleration", "8")
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestShareCOW stores what forked tasks share once: the image is little more than one copy, and what was shared is shared again.
func TestShareCOW(t *testing.T) {
	RequireRoot(t)
	for _, way := range [][2]string{{"--share-cow", "--restore-detached"}, {"--compress", "--restore-detached"}, {"--share-cow", "--lazy-pages"}} {
		target, images := tools.StartWorkload(t, "cow", "32", "8"), t.TempDir()
		target.Dump(tools.Criu, images, "--share-cow", way[0])
		if size := stored(t, images); size > 40<<20 {
			t.Errorf("%v: the pages take %d MiB", way, size>>20)
		}
		if way[1] == "--lazy-pages" { // which shares nothing, as the workload would find
			target.Restore(tools.Criu, images, way[1])
			target.Kill()
			continue
		}
		target.Restore(tools.Criu, images, way[1])
		target.Go()
	}
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		target, images := start(), t.TempDir()
		target.Dump(tools.Criu, images, "--share-cow")
		target.Restore(tools.Criu, images)
		target.Go()
	})
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

// TestSealed encrypts sets of all sorts: alone and in a chain, compressed, with checksums, in a pipe; restored at once and lazily.
func TestSealed(t *testing.T) {
	RequireRoot(t)
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, strings.Repeat("secret", 8))
	t.Run("alone", func(t *testing.T) {
		for _, extra := range []string{"--checksum", "--lazy-pages"} {
			target, images := tools.StartWorkload(t, "memory"), t.TempDir()
			target.Dump(tools.Criu, images, "--key-file", key, "--checksum")
			target.Restore(tools.Criu, images, "--key-file", key, extra)
			target.Go()
		}
	})
	t.Run("chain", func(t *testing.T) {
		target, sets := tools.StartWorkload(t, "memory"), t.TempDir()
		first, second := filepath.Join(sets, "1"), filepath.Join(sets, "2")
		for _, dir := range []string{first, second} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		common := []string{"--key-file", key, "--compress=zstd", "--checksum"}
		Must(t, filepath.Join(first, "pre.log"), append([]string{tools.Criu, "pre-dump", "-t", strconv.Itoa(target.Pid), "-D", first, "-o", "pre.log", "-v4"}, common...)...)
		target.Dump(tools.Criu, second, append(common, "--prev-images-dir", "../1", "--track-mem")...)
		target.Restore(tools.Criu, second, "--key-file", key, "--checksum")
		target.Go()
	})
	t.Run("no key", func(t *testing.T) {
		target, images := tools.StartWorkload(t, "idle"), t.TempDir()
		target.Dump(tools.Criu, images, "--key-file", key)
		if r := Run(t, tools.Criu, "restore", "-d", "-D", images); r.Code == 0 || !strings.Contains(r.Stderr, "--key-file") {
			t.Errorf("restored without its key: %s", r.Stderr)
		}
		target.Restore(tools.Criu, images, "--key-file", key)
		target.Go()
	})
}
