package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestSpeedIncremental prints what an incremental dump costs in comparison with a whole one, and what pre-dumps cost the
// program. It never fails for being slow.
func TestSpeedIncremental(t *testing.T) {
	if os.Getenv("CRYO_BENCH") == "" {
		t.Skip("a benchmark: make bench")
	}
	RequireRoot(t)
	requireTracking(t)
	const mib = 2048
	t.Run("1% written", func(t *testing.T) { incrementalTime(t, mib) })
	t.Run("throughput", func(t *testing.T) { dirtierThroughput(t, mib) })
}

// incrementalRounds is how often each is measured.
const incrementalRounds = 7

// incrementalTime compares dumps of memory of which little is written in between.
func incrementalTime(t *testing.T, mib int) {
	const pages = 256 // a MiB
	target := tools.StartWorkload(t, "dirtier", strconv.Itoa(mib), "4000")
	c := benchChain(t, target)
	run := func(images, verb string, extra ...string) time.Duration {
		return Must(t, filepath.Join(images, "dump.log"), append([]string{tools.Criu, verb, "-t", strconv.Itoa(target.Pid),
			"-D", images, "-o", "dump.log"}, extra...)...).Wall
	}
	next := func(verb string, extra ...string) (took time.Duration, size int64) {
		images, options := c.next()
		took = run(images, verb, append(options, extra...)...)
		os.RemoveAll(filepath.Join(c.dir, strconv.Itoa(c.sets-1))) // the set before this one
		return took, pagesOf(t, images)
	}
	next("dump", "--leave-running")
	var whole, part, ahead []time.Duration
	var size int64
	for range incrementalRounds {
		images := benchDir(t)
		whole = append(whole, run(images, "dump", "--leave-running"))
		os.RemoveAll(images)
		next("pre-dump") // what was written meanwhile is not to be counted
		awaitWrites(t, target, uint64(mib*pages/100))
		var took time.Duration
		took, size = next("dump", "--leave-running")
		part = append(part, took)
		awaitWrites(t, target, uint64(mib*pages/100))
		took, _ = next("pre-dump")
		ahead = append(ahead, took)
	}
	w, p, a := middle(whole), middle(part), middle(ahead)
	fmt.Printf("%d MiB dumped whole in %v; with %.1f MiB of it (%.1f %%) written since the last set in %v, %.1f %%; pre-dumped in %v, %.1f %%\n",
		mib, w, float64(size)/(1<<20), 100*float64(size)/float64(mib<<20), p, 100*float64(p)/float64(w), a, 100*float64(a)/float64(w))
}

// dirtierThroughput counts what a program gets done while it is pre-dumped every second.
func dirtierThroughput(t *testing.T, mib int) {
	target := tools.StartWorkload(t, "dirtier", strconv.Itoa(mib), "100000")
	c := benchChain(t, target)
	rate := func(rounds int, each func()) float64 {
		from, began := writes(t, target), time.Now()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for range rounds {
			each()
			<-tick.C
		}
		return float64(writes(t, target)-from) / time.Since(began).Seconds()
	}
	before := rate(5, func() {})
	c.PreDump()
	during := rate(20, func() {
		c.PreDump()
		os.RemoveAll(filepath.Join(c.dir, strconv.Itoa(c.sets-1)))
	})
	after := rate(5, func() {})
	fmt.Printf("pages written a second: %.0f before, %.0f during 20 pre-dumps, one a second (%.0f %%), %.0f afterwards\n",
		before, during, 200*during/(before+after), after)
}

func benchChain(t *testing.T, target *Target) *chain {
	c := newChain(t, target)
	c.dir = benchDir(t)
	return c
}

// benchDir is a directory for images, on a fast filesystem where CRYO_BENCH_DIR names one.
func benchDir(t *testing.T) string {
	dir, err := os.MkdirTemp(os.Getenv("CRYO_BENCH_DIR"), "cryo-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// writes is how many pages the workload has written.
func writes(t *testing.T, target *Target) uint64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(target.Dir, "count"))
	if err != nil || len(b) < 8 {
		t.Fatalf("count: %v", err)
	}
	return binary.NativeEndian.Uint64(b)
}

func awaitWrites(t *testing.T, target *Target, n uint64) {
	t.Helper()
	from := writes(t, target)
	target.await(fmt.Sprintf("%d written pages", n), func() bool { return writes(t, target) >= from+n })
}

func middle(all []time.Duration) time.Duration {
	sorted := append([]time.Duration(nil), all...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted[len(sorted)/2]
}
