package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"cryo/internal/image"
	"cryo/internal/pagecopy"
	"cryo/internal/vma"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// TestSpeedMoving prints what it takes to move memory in other ways than into a directory: through a pipe, to a page server,
// compressed, and after the tasks run. It never fails for being slow. CRYO_BENCH=1 turns it on.
func TestSpeedMoving(t *testing.T) {
	if os.Getenv("CRYO_BENCH") == "" {
		t.Skip("a benchmark: make bench")
	}
	RequireRoot(t)
	becomeSubreaper(t)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "moving\ttime\tbeside\ttimes as fast\tsize\t")
	for _, row := range []struct {
		name string
		row  func(*testing.T, printer)
	}{{"stream", streamTime}, {"page server", serverTime}, {"compression", compressTime}, {"lazy", lazyTime}} {
		if only := os.Getenv("CRYO_BENCH_ONLY"); only != "" && only != row.name {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			row.row(t, func(name string, took time.Duration, beside string, theirs time.Duration, size int64) {
				other, factor, bytes := beside, "", ""
				if theirs > 0 {
					other, factor = fmt.Sprintf("%s %s", beside, ms(theirs)), ratio(theirs, took)
				}
				if size > 0 {
					bytes = mib(size)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", name, ms(took), other, factor, bytes)
			})
		})
	}
	w.Flush()
}

// times is the median of what one measurement gives n times, figure by figure.
func times(n int, each func() []time.Duration) []time.Duration {
	var all [][]time.Duration
	for range n {
		all = append(all, each())
	}
	mid := make([]time.Duration, len(all[0]))
	for i := range mid {
		var list []time.Duration
		for _, round := range all {
			list = append(list, round[i])
		}
		mid[i] = middle(list)
	}
	return mid
}

type printer = func(name string, took time.Duration, beside string, theirs time.Duration, size int64)

// streamTime moves a tree through a pipe, and through a directory. The limit is a program that hands as much of its own memory to a
// pipe by vmsplice(2), without a byte more. Times are of whole commands, until the reader has ended too; those of dumps that end
// the tree, and of its limit, have the end of the memory in them.
func streamTime(t *testing.T, print printer) {
	const mib = 1024
	m := times(5, func() []time.Duration {
		target := tools.StartWorkload(t, "bigmem", strconv.Itoa(mib))
		images := benchDir(t)
		defer os.RemoveAll(images)
		dump := target.Dump(tools.Criu, images).Wall
		restore := target.Restore(tools.Criu, images).Wall
		snapshot, _ := pipeTime(t, target, images, exec.Command("cat"), "--leave-running")
		move, _ := pipeTime(t, target, images, exec.Command(tools.Criu, "restore", "-d", "-D", "-", "-W", images, "-o", "restore.log"))
		target.Go()
		target = tools.StartWorkload(t, "bigmem", strconv.Itoa(mib))
		killed, cpu := pipeTime(t, target, images, exec.Command("cat"))
		limit := vmspliceTime(t, mib<<20)
		return []time.Duration{move, dump + restore, snapshot, limit.moved, killed, limit.ended, cpu, limit.cpu, dump}
	})
	print("1 GiB: dump | restore", m[0], "dump, restore by a directory", m[1], 0)
	print("1 GiB: dump --leave-running | cat", m[2], "its bytes by vmsplice", m[3], 0)
	print("1 GiB: dump | cat", m[4], "its bytes by vmsplice, and its end", m[5], 0)
	print("1 GiB: dump | cat", m[4], "dump into a directory", m[8], 0)
	print("1 GiB: dump | cat, processor time but of cat", m[6], "by vmsplice, and its end", m[7], 0)
}

// pipeTime measures a dump into the standard input of a program: until both have ended, and what processor time it takes, that of the
// tree meanwhile included, and of the reader not.
func pipeTime(t *testing.T, target *Target, work string, sink *exec.Cmd, extra ...string) (took, cpu time.Duration) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	target.Tree()
	before := childrenCPU() + cpuOf(t, target.Pid)
	var said bytes.Buffer
	dump := exec.Command(tools.Criu, append([]string{"dump", "-t", strconv.Itoa(target.Pid), "-D", "-", "-W", work, "-o", "dump.log"}, extra...)...)
	dump.Stdout, dump.Stderr, sink.Stdin = w, &said, r
	began := time.Now()
	for _, cmd := range []*exec.Cmd{sink, dump} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	r.Close()
	w.Close()
	if err := dump.Wait(); err != nil {
		t.Fatalf("dump: %v: %s", err, &said)
	}
	if len(extra) == 0 { // the tree has ended, and a restore waits for its ids
		for _, pid := range target.tree {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
	if err := sink.Wait(); err != nil {
		t.Fatalf("%v: %v", sink.Args, err)
	}
	took = time.Since(began)
	reapOrphans()
	return took, childrenCPU() - before - sink.ProcessState.UserTime() - sink.ProcessState.SystemTime()
}

// serverTime dumps to a page server on the same machine: until that has all, and until the dump and the server have ended, with
// the memory of the tasks given back.
func serverTime(t *testing.T, print printer) {
	dump := func(criu string) (stored, ended time.Duration) {
		if criu == "" {
			return 0, 0
		}
		target := tools.StartWorkload(t, "bigmem", "1024")
		defer target.Kill()
		images, port := benchDir(t), freePort(t)
		defer os.RemoveAll(images)
		Must(t, filepath.Join(images, "server.log"), criu, "page-server", "-D", images, "--address", "127.0.0.1", "--port", port,
			"--daemon", "--pidfile", "server.pid", "-o", "server.log")
		began := time.Now()
		target.Dump(criu, images, "--page-server", "--address", "127.0.0.1", "--port", port, "-v2")
		awaitEnd(t, target, filepath.Join(images, "server.pid"))
		ended = time.Since(began)
		pages, err := filepath.Glob(filepath.Join(images, "pages-*.img")) // only the server makes them
		if err != nil || len(pages) != 1 {
			t.Fatalf("%d pages files: %v", len(pages), err)
		}
		last, err := os.Stat(pages[0])
		if err != nil {
			t.Fatal(err)
		}
		return last.ModTime().Sub(began), ended
	}
	dump(tools.Peer) // it finds out about the kernel first
	m := times(5, func() []time.Duration {
		stored, ended := dump(tools.Criu)
		_, peer := dump(tools.Peer)
		return []time.Duration{ended, peer, stored, socketLimit(t, 1<<30)}
	})
	print("1 GiB to a page server", m[0], "criu to its own", m[1], 0)
	print("1 GiB to a page server: it has all", m[2], "a socket into a file", m[3], 0)
}

// compressTime dumps memory that can be compressed, of a program that runs on, and restores it. The limits are the library alone, on
// the same blocks with all processors; and with the same, but that each block is first read out of the program, which nobody can
// leave out who is not the program.
func compressTime(t *testing.T, print printer) {
	target := tools.StartWorkload(t, "bigmem", "256", "text")
	defer func() { target.Kill() }()
	var sets [3]string
	var sizes [3]int64
	dump := func(i int, extra ...string) time.Duration {
		if sets[i] != "" {
			os.RemoveAll(sets[i])
		}
		sets[i] = benchDir(t)
		took := target.Dump(tools.Criu, sets[i], append(extra, "--leave-running", "-v2")...).Wall
		sizes[i] = pagesOf(t, sets[i])
		return took
	}
	m := times(5, func() []time.Duration {
		plain := dump(0)
		pages := pagesIn(t, sets[0])
		took := []time.Duration{plain}
		for i, codec := range []image.Codec{image.LZ4, image.Zstd} {
			took = append(took, dump(i+1, "--compress="+codec.String()), codecTime(pages, codec), copiedCodecTime(t, target.Pid, codec))
		}
		return took
	})
	print("256 MiB of text, plain", m[0], "", 0, sizes[0])
	print("256 MiB of text, LZ4", m[1], "the library alone", m[2], sizes[1])
	print("256 MiB of text, LZ4", m[1], "the library, and reading the program", m[3], sizes[1])
	print("256 MiB of text, zstd", m[4], "the library alone", m[5], sizes[2])
	print("256 MiB of text, zstd", m[4], "the library, and reading the program", m[6], sizes[2])
	m = times(3, func() (took []time.Duration) {
		for _, set := range sets {
			target.Kill()
			took = append(took, target.Restore(tools.Criu, set, "-v2").Wall)
		}
		return took
	})
	print("256 MiB of text, LZ4, restored", m[1], "plain, restored", m[0], sizes[1])
	print("256 MiB of text, zstd, restored", m[2], "plain, restored", m[0], sizes[2])
}

// pagesIn reads the first pages file of a set.
func pagesIn(t *testing.T, images string) []byte {
	t.Helper()
	pages, err := os.ReadFile(filepath.Join(images, image.PagesFile(1)))
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// codecTime is what the library takes for pages, on all processors.
func codecTime(pages []byte, codec image.Codec) time.Duration {
	return onAll(len(pages), func(at, n int, packed []byte) []byte { return codec.Shrink(packed, pages[at:at+n], 1) })
}

// copiedCodecTime is what it takes for the largest mapping of a task, each block of which is read first.
func copiedCodecTime(t *testing.T, pid int, codec image.Codec) time.Duration {
	t.Helper()
	maps, err := vma.List(pid)
	if err != nil {
		t.Fatal(err)
	}
	large := slices.MaxFunc(maps, func(a, b vma.Mapping) int { return cmp.Compare(a.Len(), b.Len()) })
	task := pagecopy.NewTask(pid)
	defer task.Close()
	buffers := sync.Pool{New: func() any { return new([sinks.DefaultBlock]byte) }}
	return onAll(int(large.Len()), func(at, n int, packed []byte) []byte {
		b := buffers.Get().(*[sinks.DefaultBlock]byte)
		defer buffers.Put(b)
		if err := task.ReadPages([]pagecopy.Range{{Addr: large.Start + uint64(at), Len: uint64(n)}}, b[:n]); err != nil {
			t.Error(err)
		}
		return codec.Shrink(packed, b[:n], 1)
	})
}

// onAll divides size bytes into blocks, does something with each on all processors, and says how long that takes. What it
// returns is room for the next.
func onAll(size int, do func(at, n int, packed []byte) []byte) time.Duration {
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			var packed []byte
			for {
				at := int(next.Add(sinks.DefaultBlock)) - sinks.DefaultBlock
				if at >= size {
					return
				}
				packed = do(at, min(sinks.DefaultBlock, size-at), packed[:0])
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// lazyTime restores memory that comes when the tasks run: until they do, and until all is in, beside plain restores of the
// same set.
func lazyTime(t *testing.T, print printer) {
	target := tools.StartWorkload(t, "bigmem", "2048")
	images := benchDir(t)
	target.Dump(tools.Criu, images, "-v2")
	lazy := func(criu string) (runs, all time.Duration) {
		if criu == "" {
			return 0, 0
		}
		began := time.Now()
		if criu == tools.Peer {
			Must(t, filepath.Join(images, "lazy.log"), criu, "lazy-pages", "-D", images, "--daemon", "-o", "lazy.log")
		}
		// A server goes on with its standard error, whose end nobody is to wait for here.
		restore := exec.Command(criu, "restore", "-d", "-D", images, "-o", "restore.log", "--lazy-pages")
		if err := restore.Run(); err != nil {
			t.Fatalf("%v: %v\n%s", restore.Args, err, errorsOf(filepath.Join(images, "restore.log")))
		}
		runs = time.Since(began)
		awaitServers(target)
		all = time.Since(began)
		if served(t, target.Pid) {
			t.Fatal("the server has ended, and the task still misses pages")
		}
		target.Kill()
		return runs, all
	}
	m := times(5, func() []time.Duration {
		plain := target.Restore(tools.Criu, images, "-v2").Wall
		target.Kill()
		runs, all := lazy(tools.Criu)
		theirRuns, theirAll := lazy(tools.Peer)
		return []time.Duration{runs, theirRuns, all, theirAll, plain}
	})
	print("2 GiB, lazy: the task runs", m[0], "criu with its daemon", m[1], 0)
	print("2 GiB, lazy: all is in", m[2], "criu with its daemon", m[3], 0)
	print("2 GiB, lazy: all is in", m[2], "a plain restore", m[4], 0)
}

// awaitServers waits for the end of all that is left of a restore beside the target: what serves its pages. To look at the
// target's memory instead costs as much as to fill it.
func awaitServers(target *Target) {
	for _, pid := range childrenOf(os.Getpid()) {
		if pid != target.Pid {
			target.await("end of who serves pages", func() bool {
				unix.Wait4(pid, nil, unix.WNOHANG, nil)
				return !alive(pid)
			})
		}
	}
}
