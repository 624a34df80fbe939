package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUserfaultImages looks at what criu's format has no place for: crit reads and writes it, criu refuses the set.
func TestUserfaultImages(t *testing.T) {
	RequireRoot(t)
	target, images := tools.StartWorkload(t, "userfaults"), t.TempDir()
	target.Dump(tools.Criu, images)
	for name, want := range map[string]string{"files.img": `"type": 1001`, "userfaultfd.img": `"write_protected"`} {
		path := filepath.Join(images, name)
		text := Must(t, images, tools.Crit, "decode", "-i", path).Stdout
		if !strings.Contains(text, want) {
			t.Errorf("%s decoded has no %s", name, want)
		}
		again := filepath.Join(t.TempDir(), name)
		write(t, again+".json", text)
		Must(t, images, tools.Crit, "encode", "-i", again+".json", "-o", again)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(again); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s is not the same when it has been decoded and encoded: %v", name, err)
		}
	}
	if tools.Peer != "" {
		if r := Run(t, tools.Peer, "restore", "-d", "-D", images, "-o", "peer.log"); r.Code == 0 {
			t.Fatal("the peer restores a set with userfaultfds")
		}
	}
	target.Restore(tools.Criu, images)
	target.Go()
}
