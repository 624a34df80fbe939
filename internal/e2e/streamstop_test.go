package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPipedRestoreStopped stops restores that wait for the rest of their stream, and extracting too: they end, and nothing of
// the tree is there.
func TestPipedRestoreStopped(t *testing.T) {
	RequireRoot(t)
	target, work := tools.StartWorkload(t, "bigmem", "8"), t.TempDir()
	target.Tree()
	stream := pipedDump(t, target, work)
	target.Gone()
	for _, way := range []struct {
		args   []string
		signal unix.Signal
	}{
		{[]string{"restore", "-d", "-D", "-"}, unix.SIGINT},
		{[]string{"restore", "-d", "-D", "-"}, unix.SIGTERM},
		{[]string{"extract", "-D", t.TempDir()}, unix.SIGINT},
	} {
		t.Run(fmt.Sprintf("%s %v", way.args[0], way.signal), func(t *testing.T) {
			said, err := stopped(t, append(way.args, "-W", work, "-v4"), stream, way.signal)
			if err == nil || !strings.Contains(said, way.signal.String()) {
				t.Errorf("%v: %s", err, said)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", target.Pid)); err == nil {
				t.Errorf("pid %d is there", target.Pid)
			}
		})
	}
	restore := exec.Command(tools.Criu, "restore", "-d", "-D", "-", "-W", work, "-o", "restore.log", "-v4")
	restore.Stdin = bytes.NewReader(stream)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("restore of the whole stream: %v: %s", err, out)
	}
	target.Go()
}

// stopped runs a command that reads a stream, of which the end is kept back, and sends it a signal when it has read most.
func stopped(t *testing.T, args []string, stream []byte, signal unix.Signal) (said string, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var text bytes.Buffer
	cmd := exec.Command(tools.Criu, args...)
	cmd.Stdin, cmd.Stderr = r, &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := w.Write(stream[:len(stream)-1]); err != nil { // far more than a pipe has room for
		t.Errorf("write: %v", err)
	}
	cmd.Process.Signal(signal)
	err = cmd.Wait()
	return text.String(), err
}
