package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit"
)

// speedWork is one row of the benchmark's table.
type speedWork struct {
	name     string
	workload string
	args     []string
	rounds   int
	peer     bool  // whether criu can do it at all
	memory   int64 // MiB whose moving decides; 0: the number of things does
}

var speedWorks = []speedWork{
	{"tiny", "idle", nil, 9, true, 0},
	{"1 GiB of 4K pages", "bigmem", []string{"1024"}, 3, true, 1024},
	{"1 GiB of huge pages", "bigmem", []string{"1024", "huge"}, 3, true, 1024},
	{"1 GiB of written zeros", "bigmem", []string{"1024", "zero"}, 3, true, 0},
	{"1,000 tasks", "forks", []string{"999"}, 3, true, 0},
	{"1,000 tasks of 10 files", "forks", []string{"999", "10"}, 3, true, 0},
	{"1,000 threads", "threads", []string{"1000"}, 3, true, 0},
	{"10,000 descriptors", "manyfds", []string{"1000", "8000"}, 3, true, 0},
	{"9,900 pipes", "manyfds", []string{"9900", "10"}, 3, false, 0},
	{"10,000 sockets", "manysocks", []string{"2000", "3000", "3000"}, 3, true, 0},
	{"10,000 mappings", "manymaps", []string{"5000"}, 3, true, 0},
	{"512 MiB, 8 forks", "cow", []string{"512", "8"}, 3, true, 0},
}

// sample is what one dump and restore took.
type sample struct {
	dump, stop, restore time.Duration
	made                time.Duration // how long the program took to get there by itself
	image, rss          int64
}

// TestSpeed prints one table: this tree against the peer, in turns on the same
// machine. It never fails for being slow. CRYO_BENCH=1 turns it on, CRYO_BENCH_DIR
// says where images go (a tmpfs by preference).
func TestSpeed(t *testing.T) {
	if os.Getenv("CRYO_BENCH") == "" {
		t.Skip("a benchmark: make bench")
	}
	RequireRoot(t)
	if keepKernelCache(t) {
		return
	}
	if tools.Peer != "" {
		measure(t, speedWorks[0], tools.Peer) // finds out about the kernel, and remembers
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "work\tdump\tstop\trestore\timage\tmemory\tdump ×\tstop ×\trestore ×\tdump/limit\trestore/limit\t")
	for _, work := range speedWorks {
		if only := os.Getenv("CRYO_BENCH_ONLY"); only != "" && only != work.name {
			continue
		}
		t.Run(work.name, func(t *testing.T) {
			var ours, peers []sample
			measure(t, work, tools.Criu) // warms up: memory a machine has not touched yet is slow
			for range work.rounds {
				ours = append(ours, measure(t, work, tools.Criu))
				if work.peer && tools.Peer != "" {
					peers = append(peers, measure(t, work, tools.Peer))
				}
			}
			m := median(ours)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t", work.name, ms(m.dump), ms(m.stop), ms(m.restore), mib(m.image), mib(m.rss))
			if len(peers) > 0 {
				p := median(peers)
				fmt.Fprintf(w, "%s\t%s\t%s\t", ratio(p.dump, m.dump), ratio(p.stop, m.stop), ratio(p.restore, m.restore))
			} else {
				fmt.Fprintf(w, "\t\t\t")
			}
			if work.memory == 0 {
				fmt.Fprintf(w, "\t%s of %s\t\n", ratio(m.made, m.restore), ms(m.made))
				return
			}
			write, read := memoryLimits(t, work.memory<<20)
			fmt.Fprintf(w, "%s of %s\t%s of %s\t\n", ratio(write, m.dump), ms(write), ratio(read, m.restore), ms(read))
		})
	}
	w.Flush()
	fmt.Println("× is how many times as fast as the peer, medians of one run; the peer has found out about the kernel before and kept that")
	fmt.Printf("in %s. Memory is the tool's peak, and never below the %s of this program that starts it. The limits are what\n", kernelCache, mib(peakRSS()))
	fmt.Println("the machine takes for the same: write() of a buffer, read() into fresh memory, and else what the program took to get there.")
}

func measure(t *testing.T, work speedWork, criu string) sample {
	tools.Workload(t, work.workload)
	began := time.Now()
	target := tools.StartWorkload(t, work.workload, work.args...)
	made := time.Since(began)
	images, err := os.MkdirTemp(os.Getenv("CRYO_BENCH_DIR"), "bench-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(images)
	target.Tree()
	dump := Must(t, filepath.Join(images, "dump.log"), criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log")
	target.Gone()
	restore := Must(t, filepath.Join(images, "restore.log"), criu, "restore", "-d", "-D", images, "-o", "restore.log")
	target.Go()
	s := sample{made: made, dump: dump.Wall, restore: restore.Wall, stop: frozenTime(images), rss: max(dump.MaxRSS, restore.MaxRSS) << 10}
	files, _ := filepath.Glob(filepath.Join(images, "*.img"))
	for _, f := range files {
		if st, err := os.Lstat(f); err == nil {
			s.image += st.Size()
		}
	}
	return s
}

func frozenTime(images string) time.Duration {
	stats, err := crit.GetDumpStats(images)
	if err != nil {
		return 0
	}
	return time.Duration(stats.GetFrozenTime()) * time.Microsecond
}

// median takes each figure's own median.
func median(samples []sample) sample {
	pick := func(get func(sample) int64) int64 {
		v := make([]int64, len(samples))
		for i, s := range samples {
			v[i] = get(s)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return sample{
		made:    time.Duration(pick(func(s sample) int64 { return int64(s.made) })),
		dump:    time.Duration(pick(func(s sample) int64 { return int64(s.dump) })),
		stop:    time.Duration(pick(func(s sample) int64 { return int64(s.stop) })),
		restore: time.Duration(pick(func(s sample) int64 { return int64(s.restore) })),
		image:   pick(func(s sample) int64 { return s.image }),
		rss:     pick(func(s sample) int64 { return s.rss }),
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
func mib(n int64) string        { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func ratio(peer, ours time.Duration) string {
	if ours == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(peer)/float64(ours))
}
