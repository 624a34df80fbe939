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
const snapshotRounds = 5

// TestSnapshotSpeed prints how long a program itself sees that it stands still while a snapshot of it is taken and it is
// left running: the largest gap between time stamps it takes all the time. Beside it stand how long the tool says that it
// held the program, a fork of the same memory, the largest gap while another process does nothing but write as many bytes
// to the same place, which is what the machine does to who has a busy neighbour, and the gap of the same snapshot by the
// peer. CRYO_BENCH=1 turns it on.
func TestSnapshotSpeed(t *testing.T) {
	if os.Getenv("CRYO_BENCH") == "" {
		t.Skip("a benchmark: make bench")
	}
	RequireRoot(t)
	if keepKernelCache(t) {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "snapshot\tgap\tstop\tfork\tgap/fork\tbeside a writer\tpeer's gap\tdump\t")
	const mib = 4096
	for _, row := range []struct {
		name string
		args []string
	}{{"4 GiB of 4K pages", []string{strconv.Itoa(mib)}}, {"4 GiB of huge pages", []string{strconv.Itoa(mib), "huge"}}} {
		if only := os.Getenv("CRYO_BENCH_ONLY"); only != "" && only != row.name {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			var rounds []snapshotSample
			for range snapshotRounds {
				s, err := measureSnapshot(t, tools.Criu, mib, row.args)
				if err != nil {
					t.Fatal(err)
				}
				rounds = append(rounds, s)
			}
			m := medianSnapshot(rounds)
			peers := ""
			if tools.Peer != "" {
				s, err := measureSnapshot(t, tools.Peer, mib, row.args)
				if peers = ms(s.gap); err != nil {
					peers = "fails"
					t.Log("the peer:", err)
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n",
				row.name, ms(m.gap), ms(m.stop), ms(m.fork), ratio(m.gap, m.fork), ms(m.writer), peers, ms(m.dump))
		})
	}
	w.Flush()
}

// snapshotSample is what one snapshot took.
type snapshotSample struct{ gap, stop, fork, writer, dump time.Duration }

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
		gap:    pick(func(s snapshotSample) time.Duration { return s.gap }),
		stop:   pick(func(s snapshotSample) time.Duration { return s.stop }),
		fork:   pick(func(s snapshotSample) time.Duration { return s.fork }),
		writer: pick(func(s snapshotSample) time.Duration { return s.writer }),
		dump:   pick(func(s snapshotSample) time.Duration { return s.dump }),
	}
}

// measureSnapshot takes a snapshot of memory of so many MiB. An error says that there is none, and why.
func measureSnapshot(t *testing.T, criu string, mib int, args []string) (s snapshotSample, err error) {
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
		target.AwaitFile(name)
		ns, err := strconv.ParseInt(target.read(name), 10, 64)
		if err == nil {
			err = os.Remove(filepath.Join(target.Dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	say("measure")
	s.fork = heard("fork")
	writeBeside(t, filepath.Join(images, "bytes"), mib)
	say("report")
	s.writer = heard("gap")
	r := Run(t, criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "--leave-running")
	say("report")
	s.gap, s.dump = heard("gap"), r.Wall
	if r.Code != 0 {
		return s, fmt.Errorf("exit status %d: %s", r.Code, errorsOf(filepath.Join(images, "dump.log")))
	}
	if stored := pagesOf(t, images); stored < int64(mib)<<20 {
		return s, fmt.Errorf("exit status 0, but a set of %d MiB, and the program has %d", stored>>20, mib)
	}
	s.stop = frozenTime(images)
	return s, nil
}

// writeBeside has another process write so many MiB to a file, and takes that away again.
func writeBeside(t *testing.T, path string, mib int) {
	if r := Run(t, "dd", "if=/dev/zero", "of="+path, "bs=1M", "count="+strconv.Itoa(mib)); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
