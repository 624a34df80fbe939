package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// TestLazyMigrate leaves the memory in the tasks that were dumped, stopped, until the restore elsewhere has all of it: in a pid
// namespace, where the pids are free. The other side may be the peer.
func TestLazyMigrate(t *testing.T) {
	RequireRoot(t)
	for _, way := range []struct{ name, dest string }{
		{"ours", tools.Criu},
		{"to the peer", tools.Peer},
	} {
		t.Run(way.name, func(t *testing.T) {
			if way.dest == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			target, images, port := tools.StartWorkload(t, "memory"), t.TempDir(), freePort(t)
			target.Tree()
			dump, said := leaveMemory(t, target, images, port)
			target.Signal() // it is to check itself where it comes to be
			dest := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "/bin/sh", "-c", lazyDestination)
			dest.Env = append(os.Environ(), "CRIU="+way.dest, "IMAGES="+images, "PORT="+port)
			out, err := dest.CombinedOutput()
			if verdict := target.read("verdict"); err != nil || verdict != "PASS" {
				t.Fatalf("%v, verdict %q: %s\n%s\n%s", err, verdict, out, errorsOf(filepath.Join(images, "restore.log")), errorsOf(filepath.Join(images, "lazy.log")))
			}
			if err := dump.Wait(); err != nil {
				t.Errorf("the source: %v: %s\n%s", err, said, errorsOf(filepath.Join(images, "dump.log")))
			}
			target.Gone()
		})
	}
}

// leaveMemory starts a dump that serves the memory of its tasks at port, and waits until it does.
func leaveMemory(t *testing.T, target *Target, images, port string) (dump *exec.Cmd, said *bytes.Buffer) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	said = new(bytes.Buffer)
	dump = exec.Command(tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "-v4", "--lazy-pages",
		"--address", "127.0.0.1", "--port", port, "--status-fd", "3")
	dump.ExtraFiles, dump.Stderr = []*os.File{w}, said
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		dump.Process.Kill()
		dump.Wait()
	})
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatalf("the dump does not serve: %v: %s\n%s", err, said, errorsOf(filepath.Join(images, "dump.log")))
	}
	return dump, said
}

// lazyDestination restores, and waits for the restored tree and for who brings its memory.
const lazyDestination = `
$CRIU lazy-pages -D $IMAGES --page-server --address 127.0.0.1 --port $PORT -o lazy.log -v4 &
until [ -e $IMAGES/lazy-pages.socket ]; do
	kill -0 $! || exit
	sleep 0.01
done
$CRIU restore -D $IMAGES --lazy-pages -o restore.log -v4 && wait $!
`
