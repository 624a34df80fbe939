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
)

// snapshotRounds is how often each row is measured.
const snapshotRounds = 3

// TestSnapshotSpeed prints how long a program itself sees that it stands still while a snapshot of it is taken and it is
// left running: the largest gap between time stamps it takes all the time, beside a fork of the same memory and the same
// snapshot by the peer. CRYO_BENCH=1 turns it on.
func TestSnapshotSpeed(t *testing.T) {
	if os.Getenv("CRYO_BENCH") == "" {
		t.Skip("a benchmark: make bench")
	}
	RequireRoot(t)
	if keepKernelCache(t) {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "snapshot\tgap\tfork\tgap/fork\tpeer's gap\tdump\t")
	for _, row := range []struct {
		name string
		args []string
	}{{"4 GiB of 4K pages", []string{"4096"}}, {"4 GiB of huge pages", []string{"4096", "huge"}}} {
		if only := os.Getenv("CRYO_BENCH_ONLY"); only != "" && only != row.name {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			var rounds []snapshotSample
			for range snapshotRounds {
				rounds = append(rounds, measureSnapshot(t, tools.Criu, row.args))
			}
			m := medianSnapshot(rounds)
			peers := ""
			if tools.Peer != "" {
				peers = ms(measureSnapshot(t, tools.Peer, row.args).gap)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", row.name, ms(m.gap), ms(m.fork), ratio(m.gap, m.fork), peers, ms(m.dump))
		})
	}
	w.Flush()
}

// snapshotSample is what one snapshot took.
type snapshotSample struct{ gap, fork, dump time.Duration }

// medianSnapshot takes each figure's own median.
func medianSnapshot(rounds []snapshotSample) snapshotSample {
	pick := func(get func(snapshotSample) time.Duration) time.Duration {
		list := make([]time.Duration, len(rounds))
		for i, r := range rounds {
			list[i] = get(r)
		}
		slices.Sort(list)
		return list[len(list)/2]
	}
	return snapshotSample{
		gap:  pick(func(s snapshotSample) time.Duration { return s.gap }),
		fork: pick(func(s snapshotSample) time.Duration { return s.fork }),
		dump: pick(func(s snapshotSample) time.Duration { return s.dump }),
	}
}

func measureSnapshot(t *testing.T, criu string, args []string) snapshotSample {
	target := tools.StartWorkload(t, "stamps", args...)
	defer target.Kill()
	images, err := os.MkdirTemp(os.Getenv("CRYO_BENCH_DIR"), "bench-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(images)
	say := func(name string) {
		if err := os.WriteFile(filepath.Join(target.Dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	heard := func(name string) time.Duration {
		target.await("the file "+name, func() bool {
			_, err := os.Stat(filepath.Join(target.Dir, name))
			return err == nil
		})
		ns, err := strconv.ParseInt(target.read(name), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	say("measure")
	s := snapshotSample{fork: heard("fork")}
	s.dump = Must(t, filepath.Join(images, "dump.log"), criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "--leave-running").Wall
	say("report")
	s.gap = heard("gap")
	return s
}
