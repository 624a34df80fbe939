package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// sentChain is a chain whose pages go to page servers, one for each set.
type sentChain struct {
	*chain
	server string   // the program of the servers
	serve  []string // options of theirs
	dump   []string // options of the dumps
}

// to starts a server and has a set sent to it.
func (c *sentChain) to(dump func(extra ...string) string) (images string) {
	t := c.target.t
	t.Helper()
	images, port := filepath.Join(c.dir, strconv.Itoa(c.sets+1)), freePort(t)
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{c.server, "page-server", "-D", images, "--address", "127.0.0.1", "--port", port, "--daemon",
		"--pidfile", "server.pid", "-o", "server.log", "-v4"}, c.serve...)
	if c.sets > 0 {
		argv = append(argv, "--prev-images-dir", fmt.Sprintf("../%d", c.sets))
	}
	Must(t, filepath.Join(images, "server.log"), argv...)
	dump(append([]string{"--page-server", "--address", "127.0.0.1", "--port", port}, c.dump...)...)
	awaitEnd(t, c.target, filepath.Join(images, "server.pid"))
	return images
}

// TestCompressToPageServer sends compressed sets to a page server, alone and as a chain.
func TestCompressToPageServer(t *testing.T) {
	RequireRoot(t)
	for _, how := range []string{"--compress", "--compress=zstd"} {
		for _, workload := range [][]string{{"memory"}, {"writer", "2"}, {"bigmem", "24", "zero"}} {
			t.Run(how+" "+workload[0], func(t *testing.T) {
				target := tools.StartWorkload(t, workload[0], workload[1:]...)
				c := &sentChain{newChain(t, target), tools.Criu, nil, []string{how}}
				c.to(c.PreDump)
				c.to(c.PreDump)
				target.Restore(tools.Criu, c.to(c.Dump))
				target.Go()
			})
		}
	}
}

// TestCompressToPageServerOfCriu is refused, and the target goes on.
func TestCompressToPageServerOfCriu(t *testing.T) {
	RequireRoot(t)
	if tools.Peer == "" {
		t.Skip("CRIU_PEER names no criu")
	}
	target, images, port := tools.StartWorkload(t, "idle"), t.TempDir(), freePort(t)
	Must(t, filepath.Join(images, "server.log"), tools.Peer, "page-server", "-D", images, "--address", "127.0.0.1", "--port", port,
		"--daemon", "--pidfile", "server.pid", "-o", "server.log", "-v4")
	r := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "--page-server", "--address", "127.0.0.1", "--port", port, "--compress")
	if r.Code == 0 || !strings.Contains(r.Stderr, "takes no compressed pages") {
		t.Errorf("exit status %d: %s", r.Code, r.Stderr)
	}
	awaitEnd(t, target, filepath.Join(images, "server.pid"))
	target.Go()
}

// TestZerosToPageServer sends a chain of memory that is all zeros, of which nothing is sent or stored.
func TestZerosToPageServer(t *testing.T) {
	for name, server := range map[string]string{"own": tools.Criu, "peer": tools.Peer} {
		t.Run(name, func(t *testing.T) {
			RequireRoot(t)
			if server == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			target := tools.StartWorkload(t, "bigmem", "24", "zero")
			c := &sentChain{newChain(t, target), server, nil, nil}
			for _, dump := range []func(...string) string{c.PreDump, c.PreDump} {
				if n := pagesOf(t, c.to(dump)); n > 4<<20 {
					t.Errorf("a set of zeros has %d bytes of pages", n)
				}
			}
			images := c.to(c.Dump)
			if n := pagesOf(t, images); n > 4<<20 {
				t.Errorf("the last set has %d bytes of pages", n)
			}
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// TestDedupThroughPageServer has the server take out of the older sets what it gets anew.
func TestDedupThroughPageServer(t *testing.T) {
	RequireRoot(t)
	for _, extra := range [][]string{nil, {"--compress"}} {
		target := tools.StartWorkload(t, "writer", "2")
		c := &sentChain{newChain(t, target), tools.Criu, []string{"--auto-dedup"}, extra}
		first := c.to(c.PreDump)
		whole := stored(t, first)
		c.to(c.PreDump)
		if left := stored(t, first); extra == nil && left >= whole {
			t.Errorf("the first set has %d bytes of %d", left, whole)
		}
		target.Restore(tools.Criu, c.to(c.Dump))
		target.Go()
	}
}
