package sinks_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"
)

// writerDir, in the environment, makes the test binary write the golden set there, saying so before every file and
// waiting for a line before it goes on.
const writerDir = "SINKS_TEST_WRITE_SET_TO"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		os.Exit(writeForKill(dir))
	}
	os.Exit(m.Run())
}

func writeForKill(dir string) int {
	in := bufio.NewReader(os.Stdin)
	t := &testing.T{}
	to, err := sinks.NewDir(dir, sinks.DirOptions{Created: func(name string) error {
		fmt.Println(name)
		_, err := in.ReadString('\n')
		return err
	}})
	if err != nil {
		return 1
	}
	src := openSet(t, golden)
	copyMetadata(t, golden, to, isPages)
	copyPages(t, src, to)
	if to.Commit(readInventory(t, src)) != nil {
		return 1
	}
	return 0
}

// A dump that is killed, at whichever file, leaves no valid set, also where a valid one was before; one that gets to
// the end leaves the whole.
func TestKilledWriter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for files := 1; ; files++ {
		dir := t.TempDir()
		// What an older run left.
		old := newDir(t, dir, sinks.DirOptions{})
		copyMetadata(t, golden, old, isPages)
		if err := old.Commit(readInventory(t, openSet(t, golden))); err != nil {
			t.Fatal(err)
		}
		finished, err := killAfter(self, dir, files)
		if err != nil {
			t.Fatal(err)
		}
		_, err = image.ReadInventory(openSet(t, dir))
		if finished {
			if err != nil {
				t.Error(err)
			}
			sameSet(t, dir, golden, func(string) bool { return true })
			return
		}
		if !errors.Is(err, image.ErrNoInventory) {
			t.Errorf("killed before file %d: %v", files, err)
		}
	}
}

// killAfter kills the writer when it announces the file with this number.
func killAfter(self, dir string, files int) (finished bool, err error) {
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return false, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	lines := bufio.NewScanner(out)
	for n := 1; lines.Scan(); n++ {
		if n == files {
			cmd.Process.Kill()
			cmd.Wait()
			return false, nil
		}
		fmt.Fprintln(in)
	}
	return true, cmd.Wait()
}
