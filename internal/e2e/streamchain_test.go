package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// pipedChain is a row of sets that were piped, each building on the one before.
type pipedChain struct {
	*chain
	streams [][]byte
	common  []string
}

func newPipedChain(t *testing.T, target *Target, common ...string) *pipedChain {
	return &pipedChain{chain: newChain(t, target), common: common}
}

// pipe adds a set.
func (c *pipedChain) pipe(verb string, extra ...string) {
	t := c.target.t
	t.Helper()
	index, options := c.next()
	number := filepath.Base(index)
	if c.sets > 1 {
		options[2] = strconv.Itoa(c.sets - 1) // relative to the work directory
	}
	args := append([]string{verb, "-t", strconv.Itoa(c.target.Pid), "-D", "-", "-W", c.dir, "--index", number, "-o", verb + number + ".log", "-v4"}, c.common...)
	cmd := exec.Command(tools.Criu, append(append(args, options...), extra...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s\n%s", verb, err, &said, errorsOf(filepath.Join(c.dir, verb+number+".log")))
	}
	c.streams = append(c.streams, out.Bytes())
}

// criu runs a command with a stream for its standard input.
func (c *pipedChain) criu(in []byte, args ...string) (said string, err error) {
	cmd := exec.Command(tools.Criu, append(args, c.common...)...)
	var text bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &text
	err = cmd.Run()
	return text.String(), err
}

func (c *pipedChain) must(in []byte, args ...string) {
	c.target.t.Helper()
	if said, err := c.criu(in, args...); err != nil {
		c.target.t.Fatalf("%v: %v: %s", args, err, said)
	}
}

// whole is three sets: two with memory alone, and a dump.
func (c *pipedChain) whole() {
	c.target.t.Helper()
	c.target.Tree()
	c.pipe("pre-dump")
	c.pipe("pre-dump")
	c.pipe("dump")
	c.target.Gone()
}

// TestPipedChain sends a chain through pipes: all into one restore; into directories, one after the other out of the same
// pipe; and the last into a restore that has the others in directories.
func TestPipedChain(t *testing.T) {
	RequireRoot(t)
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, strings.Repeat("secret", 8))
	restore := []string{"restore", "-d", "-o", "restore.log", "-v4"}
	ways := map[string]func(t *testing.T, c *pipedChain){
		"pipe": func(_ *testing.T, c *pipedChain) {
			c.must(bytes.Join(c.streams, nil), append(restore, "-D", "-", "-W", c.dir)...)
		},
		"directories": func(t *testing.T, c *pipedChain) {
			c.extract(t, 3)
			c.must(nil, append(restore, "-D", filepath.Join(c.dir, "out3"))...)
		},
		"both": func(t *testing.T, c *pipedChain) {
			c.extract(t, 2)
			c.must(c.streams[2], append(restore, "-D", "-", "-W", c.dir, "--prev-images-dir", "out2")...)
		},
	}
	for _, common := range [][]string{nil, {"--compress"}, {"--key-file", key}} {
		for name, way := range ways {
			t.Run(strings.Join(append(common, name), " "), func(t *testing.T) {
				for _, workload := range [][]string{{"bigmem", "24"}, {"writer", "2"}} {
					target := tools.StartWorkload(t, workload[0], workload[1:]...)
					c := newPipedChain(t, target, common...)
					c.whole()
					if n := len(c.streams[1]); workload[0] == "bigmem" && n > len(c.streams[0])/5 {
						t.Errorf("the first set has %d bytes, the second %d", len(c.streams[0]), n)
					}
					way(t, c)
					target.Tree()
					target.Go()
				}
			})
		}
	}
}

// extract puts the first n sets into directories, out of one pipe.
func (c *pipedChain) extract(t *testing.T, n int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		w.Write(bytes.Join(c.streams[:n], nil))
		w.Close()
	}()
	for i := range n {
		dir := filepath.Join(c.dir, "out"+strconv.Itoa(i+1))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tools.Criu, "extract", "-D", dir)
		if i > 0 {
			cmd.Args = append(cmd.Args, "--prev-images-dir", "../out"+strconv.Itoa(i))
		}
		cmd.Stdin = r
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("extract: %v: %s", err, out)
		}
	}
}

// TestPipedChainRefused leaves sets out of a chain, changes their order and cuts them: there is no task, and no set.
func TestPipedChainRefused(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "bigmem", "8")
	c := newPipedChain(t, target)
	c.whole()
	one, two, three := c.streams[0], c.streams[1], c.streams[2]
	join := func(s ...[]byte) []byte { return bytes.Join(s, nil) }
	for name, row := range map[string]struct {
		in   []byte
		want string
	}{
		"the last alone":     {three, "builds on another one, which does not come before it"},
		"first left out":     {join(two, three), "builds on another one, which does not come before it"},
		"second left out":    {join(one, three), "another has been put in its place"},
		"wrong order":        {join(one, three, two), "pre-dump"},
		"without the dump":   {join(one, two), "is a pre-dump"},
		"a new beginning":    {join(one, one), "builds on nothing"},
		"cut in the first":   {join(one[:len(one)/2], two, three), "frame"},
		"cut in the last":    {join(one, two, three[:len(three)-1]), "breaks off"},
		"cut between":        {join(one, two[:len(two)-40], three), "frame"},
		"something follows":  {join(one, two, three, []byte("something")), "is not how an image stream starts"},
		"less than a header": {join(one, two, three, []byte("CRYO")), "breaks off"},
	} {
		said, err := c.criu(row.in, "restore", "-d", "-D", "-", "-W", c.dir, "-o", "restore.log")
		if err == nil || !strings.Contains(said, row.want) {
			t.Errorf("%s: %v: %s, without %q", name, err, said, row.want)
		}
		if target.Alive() {
			t.Fatalf("%s: there is a task", name)
		}
	}
	c.extract(t, 2)
	for name, row := range map[string]struct {
		in         []byte
		prev, want string
	}{
		"cut":          {one[:len(one)-1], "", "breaks off"},
		"without base": {two, "", "builds on another one"},
		"wrong base":   {three, "../out1", "was made by run"},
		"needless":     {one, "../out1", "builds on nothing"},
		"nothing":      {nil, "", "nothing came on"},
	} {
		dir := filepath.Join(c.dir, "refused")
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		args := []string{"extract", "-D", dir}
		if row.prev != "" {
			args = append(args, "--prev-images-dir", row.prev)
		}
		said, err := c.criu(row.in, args...)
		if err == nil || !strings.Contains(said, row.want) {
			t.Errorf("extract %s: %v: %s, without %q", name, err, said, row.want)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("extract %s has left %v", name, left)
		}
	}
	c.must(join(one, two, three), "restore", "-d", "-D", "-", "-W", c.dir, "-o", "restore.log")
	target.Tree()
	target.Go()
}

// shardFDs are the descriptors of a command's extra files.
const shardFDs = "3,4,5"

// TestShards dumps through three pipes into a restore.
func TestShards(t *testing.T) {
	RequireRoot(t)
	for _, extra := range [][]string{nil, {"--compress"}} {
		target, work := tools.StartWorkload(t, "bigmem", "24"), t.TempDir()
		target.Tree()
		shards := shardedDump(t, target, work, extra...)
		target.Gone()
		for i, s := range shards {
			if len(s) < 1<<20 {
				t.Errorf("shard %d has %d bytes", i, len(s))
			}
		}
		cut := slices.Clone(shards)
		cut[1] = cut[1][:len(cut[1])-1]
		for want, in := range map[string][][]byte{"breaks off": cut, "a shard is lost": {shards[0], nil, shards[2]}} {
			if said, err := shardedRestore(t, work, in); err == nil || !strings.Contains(said, want) {
				t.Errorf("%v: %s, without %q", err, said, want)
			}
			if target.Alive() {
				t.Fatal("there is a task")
			}
		}
		if said, err := shardedRestore(t, work, shards); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		target.Tree()
		target.Go()
	}
}

// TestLostShard closes one of the pipes a dump writes to: it fails, and the target goes on.
func TestLostShard(t *testing.T) {
	RequireRoot(t)
	target, work := tools.StartWorkload(t, "bigmem", "24"), t.TempDir()
	dump, pipes := sharded(t, work, "dump", "-t", strconv.Itoa(target.Pid))
	pipes[1].Close()
	var all sync.WaitGroup
	for _, r := range []*os.File{pipes[0], pipes[2]} {
		all.Go(func() { io.Copy(io.Discard, r) })
	}
	var said bytes.Buffer
	dump.Stderr = &said
	err := dump.Run()
	for _, f := range dump.ExtraFiles {
		f.Close()
	}
	all.Wait()
	if err == nil || !strings.Contains(said.String(), "broken pipe") {
		t.Errorf("dump: %v: %s", err, &said)
	}
	target.Go()
}

// sharded makes a command that writes a stream to three pipes, whose other ends it returns.
func sharded(t *testing.T, work string, args ...string) (cmd *exec.Cmd, pipes []*os.File) {
	t.Helper()
	cmd = exec.Command(tools.Criu, append(args, "-D", "-", "-W", work, "--shard-fds", shardFDs, "-o", "shards.log", "-v4")...)
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		cmd.ExtraFiles, pipes = append(cmd.ExtraFiles, w), append(pipes, r)
	}
	return cmd, pipes
}

func shardedDump(t *testing.T, target *Target, work string, extra ...string) [][]byte {
	t.Helper()
	dump, pipes := sharded(t, work, append([]string{"dump", "-t", strconv.Itoa(target.Pid)}, extra...)...)
	shards := make([][]byte, len(pipes))
	var all sync.WaitGroup
	for i, r := range pipes {
		all.Go(func() { shards[i], _ = io.ReadAll(r) })
	}
	out, err := dump.CombinedOutput()
	for _, f := range dump.ExtraFiles {
		f.Close()
	}
	all.Wait()
	if err != nil {
		t.Fatalf("dump: %v: %s\n%s", err, out, errorsOf(filepath.Join(work, "shards.log")))
	}
	return shards
}

func shardedRestore(t *testing.T, work string, shards [][]byte) (said string, err error) {
	t.Helper()
	cmd := exec.Command(tools.Criu, "restore", "-d", "-D", "-", "-W", work, "--shard-fds", shardFDs, "-o", "restore.log", "-v4")
	var all sync.WaitGroup
	var text bytes.Buffer
	cmd.Stderr = &text
	for _, s := range shards {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, r)
		all.Go(func() {
			w.Write(s) // a restore that refuses does not read all
			w.Close()
		})
	}
	err = cmd.Run()
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	all.Wait()
	return text.String(), err
}
