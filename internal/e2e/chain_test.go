package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chain is a row of sets, each building on the one before.
type chain struct {
	target *Target
	dir    string
	sets   int
}

func newChain(t testing.TB, target *Target) *chain {
	requireTracking(t)
	c := &chain{target: target, dir: t.TempDir()}
	t.Cleanup(c.keeperGone)
	return c
}

// requireTracking skips where nothing can be built on an earlier set.
func requireTracking(t testing.TB) {
	t.Helper()
	if r := Run(t, tools.Criu, "check", "--feature", "mem_dirty_track"); r.Code != 0 {
		t.Skip("this kernel cannot track memory: " + r.Stderr)
	}
}

// next makes the directory of the next set and says what a dump into it has to be told.
func (c *chain) next() (images string, options []string) {
	c.sets++
	images = filepath.Join(c.dir, strconv.Itoa(c.sets))
	if err := os.Mkdir(images, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		c.target.t.Fatal(err)
	}
	options = []string{"--track-mem"}
	if c.sets > 1 {
		options = append(options, "--prev-images-dir", fmt.Sprintf("../%d", c.sets-1))
	}
	return images, options
}

// PreDump adds a set with memory only; the target runs on.
func (c *chain) PreDump(extra ...string) (images string) {
	c.target.t.Helper()
	images, options := c.next()
	Must(c.target.t, filepath.Join(images, "dump.log"), append(append([]string{tools.Criu, "pre-dump", "-t",
		strconv.Itoa(c.target.Pid), "-D", images, "-o", "dump.log", "-v4"}, options...), extra...)...)
	if !c.target.Alive() {
		c.target.t.Fatal("the target did not survive a pre-dump")
	}
	return images
}

// Dump adds a whole set.
func (c *chain) Dump(extra ...string) (images string) {
	c.target.t.Helper()
	images, options := c.next()
	c.target.Dump(tools.Criu, images, append(options, extra...)...)
	return images
}

// keeperGone fails if a keeper outlives the target.
func (c *chain) keeperGone() {
	c.target.Kill()
	c.target.await("end of the keeper", func() bool {
		reapOrphans()
		return len(keepersOf(c.target.Pid)) == 0
	})
}

// keepersOf are the keepers of a tree's tracking.
func keepersOf(root int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if text, err := os.ReadFile(dir + "/cmdline"); err != nil || string(text) != "criu-keeper\x00" {
			continue // what others have open is not to be read from
		}
		state, err := os.ReadFile(dir + "/fd/3")
		if err == nil && strings.Contains(string(state), fmt.Sprintf(`"Root":%d,`, root)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// pagesOf is how many bytes of pages a set has.
func pagesOf(t testing.TB, images string) (size int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(images, "pages-*.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	return size
}

// TestChain dumps every workload after two pre-dumps, of either mode, and restores the last set.
func TestChain(t *testing.T) {
	for _, mode := range []string{"splice", "read"} {
		t.Run(mode, func(t *testing.T) {
			eachWorkload(t, func(t *testing.T, start func() *Target) {
				target := start()
				c := newChain(t, target)
				for range 2 {
					c.PreDump("--pre-dump-mode", mode)
				}
				target.Restore(tools.Criu, c.Dump())
				target.Go()
			})
		})
	}
}

// TestSnapshots takes whole sets of a target that runs on, and goes back to the last one.
func TestSnapshots(t *testing.T) {
	eachWorkload(t, func(t *testing.T, start func() *Target) {
		if strings.HasSuffix(t.Name(), "/unixfine") {
			t.Skip("the kernel shows an empty message in a queue to the first dump only (MSG_PEEK with SO_PEEK_OFF)")
		}
		target := start()
		c := newChain(t, target)
		for range 2 {
			c.Dump("--leave-running")
		}
		images := c.Dump("--leave-running")
		target.Kill()
		target.Restore(tools.Criu, images)
		target.Go()
	})
}

// TestPeerRestoresChain has the peer restore what was written in three sets.
func TestPeerRestoresChain(t *testing.T) {
	eachPeerWorkload(t, func(t *testing.T, start func() *Target) {
		target := start()
		c := newChain(t, target)
		for range 2 {
			c.PreDump()
		}
		target.Restore(tools.Peer, c.Dump())
		target.Go()
	})
}

// TestChainUnderFire takes 20 pre-dumps, one after the other, of tasks that write, fork, move, drop and protect their
// memory all the time, and has them compare every page with what they have written after the restore.
func TestChainUnderFire(t *testing.T) {
	RequireRoot(t)
	for round := range 3 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			target := tools.StartWorkload(t, "writer", "3")
			c := newChain(t, target)
			for range 20 {
				c.PreDump()
			}
			c.Dump("--leave-running")
			images := c.Dump()
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// TestChainInTheWay takes sets of a program with a userfaultfd of its own, which closes whatever descriptors it finds, and
// whose child calls exec all the time.
func TestChainInTheWay(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "ownuffd")
	c := newChain(t, target)
	for range 10 {
		c.PreDump()
	}
	write(t, filepath.Join(target.Dir, "final"), "")
	target.await("no userfaultfd", func() bool {
		c.PreDump()
		_, err := os.Stat(filepath.Join(target.Dir, "closed"))
		return err == nil
	})
	for range 3 {
		c.PreDump()
	}
	target.Restore(tools.Criu, c.Dump())
	target.Go()
}

// TestChainIsSmall writes little between two sets and looks at the size of the second.
func TestChainIsSmall(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "bigmem", "64")
	c := newChain(t, target)
	whole := pagesOf(t, c.PreDump())
	part := pagesOf(t, c.PreDump())
	if whole < 64<<20 || part > whole/20 {
		t.Errorf("the first set has %d bytes, the second %d", whole, part)
	}
	target.Restore(tools.Criu, c.Dump())
	target.Go()
}

// TestKeeperKilled ends who keeps the tracking: the next set is whole, and right.
func TestKeeperKilled(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "bigmem", "16")
	c := newChain(t, target)
	whole := pagesOf(t, c.PreDump())
	killKeeper(t, target)
	if again := pagesOf(t, c.PreDump()); again < whole {
		t.Errorf("without a keeper the second set has %d bytes of %d", again, whole)
	}
	target.Restore(tools.Criu, c.Dump())
	target.Go()
}

func killKeeper(t *testing.T, target *Target) {
	t.Helper()
	keepers := keepersOf(target.Pid)
	if len(keepers) == 0 {
		t.Fatal("there is no keeper")
	}
	for _, pid := range keepers {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pidfd)
		unix.Kill(pid, unix.SIGKILL)
		target.await("end of all threads of the keeper", func() bool { // the first may end before the others, who still watch memory
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
			return n == 1 && err == nil
		})
	}
}

// TestWrongParents gives dumps previous sets that are none: they are refused, or everything is stored, and the target goes
// on.
func TestWrongParents(t *testing.T) {
	RequireRoot(t)
	refused := func(t *testing.T, target *Target, dir, prev, want string) {
		t.Helper()
		images := filepath.Join(dir, "refused")
		os.MkdirAll(images, 0o700)
		for _, verb := range []string{"pre-dump", "dump"} {
			r := Run(t, tools.Criu, verb, "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "--track-mem", "--prev-images-dir", prev)
			if r.Code == 0 || !strings.Contains(r.Stderr, want) {
				t.Errorf("%s: exit status %d: %s, without %q", verb, r.Code, r.Stderr, want)
			}
			if _, err := os.Stat(filepath.Join(images, "inventory.img")); err == nil {
				t.Errorf("%s left a set", verb)
			}
		}
	}
	target := tools.StartWorkload(t, "bigmem", "8")
	c := newChain(t, target)
	whole := pagesOf(t, c.PreDump())
	refused(t, target, c.dir, "../nothing", "previous set ../nothing: no such file or directory")
	os.Mkdir(filepath.Join(c.dir, "empty"), 0o700)
	refused(t, target, c.dir, "../empty", "no inventory.img")
	refused(t, target, c.dir, ".", "it is the directory of the new one")
	if r := Run(t, tools.Criu, "restore", "-d", "-D", filepath.Join(c.dir, "1")); r.Code == 0 || !strings.Contains(r.Stderr, "is a pre-dump") {
		t.Errorf("restore of a pre-dump: exit status %d: %s", r.Code, r.Stderr)
	}

	other := tools.StartWorkload(t, "bigmem", "8")
	foreign := newChain(t, other)
	rel, err := filepath.Rel(filepath.Join(c.dir, "refused"), foreign.PreDump())
	if err != nil {
		t.Fatal(err)
	}
	refused(t, target, c.dir, rel, "it is one of another tree")

	// The second set is left out: what was written between it and the first is in no parent of the third.
	c.PreDump()
	images, _ := c.next()
	target.Dump(tools.Criu, images, "--track-mem", "--prev-images-dir", "../1")
	if n := pagesOf(t, images); n < whole {
		t.Errorf("a set whose parent is not the last one has %d bytes of %d", n, whole)
	}
	target.Restore(tools.Criu, images)
	target.Go()
}

// TestReplacedParents puts other sets in the place of one that later ones build on: a restore refuses before there is a
// task.
func TestReplacedParents(t *testing.T) {
	RequireRoot(t)
	for name, replace := range map[string]func(t *testing.T, c *chain, parent string) (want string){
		"newer": func(t *testing.T, c *chain, parent string) string {
			Must(t, "dump.log", tools.Criu, "pre-dump", "-t", strconv.Itoa(c.target.Pid), "-D", parent, "--prev-images-dir", "../1")
			return "is newer than itself"
		},
		"older": func(t *testing.T, c *chain, parent string) string {
			link := filepath.Join(filepath.Dir(parent), "3", "parent")
			if err := errors.Join(os.Remove(link), os.Symlink("../1", link)); err != nil {
				t.Fatal(err)
			}
			return "another has been put in its place"
		},
		"unfinished": func(t *testing.T, c *chain, parent string) string {
			if err := os.Remove(filepath.Join(parent, "inventory.img")); err != nil {
				t.Fatal(err)
			}
			return "has lost its inventory.img"
		},
		"gone": func(t *testing.T, c *chain, parent string) string {
			if err := os.Rename(parent, parent+".away"); err != nil {
				t.Fatal(err)
			}
			return "no such file or directory"
		},
	} {
		t.Run(name, func(t *testing.T) {
			target := tools.StartWorkload(t, "bigmem", "8")
			c := newChain(t, target)
			c.PreDump()
			second := c.PreDump()
			images := c.Dump("--leave-running")
			want := replace(t, c, second)
			target.Kill()
			r := Run(t, tools.Criu, "restore", "-d", "-D", images, "-o", "restore.log")
			if r.Code == 0 || !strings.Contains(r.Stderr, want) {
				t.Errorf("exit status %d: %s, without %q", r.Code, r.Stderr, want)
			}
			if target.Alive() {
				t.Error("there is a task")
			}
		})
	}
}

// TestChainToPageServer sends a chain to a page server, this one's and the peer's.
func TestChainToPageServer(t *testing.T) {
	for name, server := range map[string]string{"own": tools.Criu, "peer": tools.Peer} {
		t.Run(name, func(t *testing.T) {
			RequireRoot(t)
			if server == "" {
				t.Skip("CRIU_PEER names no criu")
			}
			target := tools.StartWorkload(t, "writer", "2")
			quiet := tools.StartWorkload(t, "bigmem", "16")
			c := &sentChain{newChain(t, quiet), server, nil, nil}
			whole := pagesOf(t, c.to(c.PreDump))
			if part := pagesOf(t, c.to(c.PreDump)); part > whole/10 {
				t.Errorf("the first set has %d bytes, the second %d", whole, part)
			}
			quiet.Restore(tools.Criu, c.to(c.Dump))
			quiet.Go()

			c = &sentChain{newChain(t, target), server, nil, nil}
			for range 3 {
				c.to(c.PreDump)
			}
			target.Restore(tools.Criu, c.to(c.Dump))
			target.Go()
		})
	}
}

// TestChainTime prints what a set with few changes costs in comparison with a whole one.
func TestChainTime(t *testing.T) {
	RequireRoot(t)
	if testing.Short() {
		t.Skip("takes 1 GiB")
	}
	target := tools.StartWorkload(t, "bigmem", "1024")
	c := newChain(t, target)
	var took [3]time.Duration
	for i := range took {
		start := time.Now()
		c.PreDump()
		took[i] = time.Since(start)
	}
	t.Logf("1 GiB: %v, then nothing written: %v, %v", took[0], took[1], took[2])
}
