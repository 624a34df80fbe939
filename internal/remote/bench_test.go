package remote

import (
	"errors"
	"testing"
	"time"

	"cryo/internal/ptrace"
)

// BenchmarkInject71 is 71 system calls in a foreign task, from seize to detach.
func BenchmarkInject71(b *testing.B) {
	pid := target(b, "sleep", "1000")
	instr, err := FindSyscall(pid)
	if err != nil {
		b.Fatal(err)
	}
	escape, err := FindEscape(pid)
	if err != nil {
		b.Fatal(err)
	}
	prog, _, _ := collectProgram()
	tr := ptrace.NewTracer()
	defer tr.Close()
	err = tr.Do(func() error {
		phases := make([]time.Duration, 6)
		for range b.N {
			at := time.Now()
			lap := func(i int) {
				now := time.Now()
				phases[i] += now.Sub(at)
				at = now
			}
			if err := ptrace.Seize(pid, 0); err != nil {
				return err
			}
			if _, err := ptrace.Stop(pid); err != nil {
				return err
			}
			lap(0)
			th, err := Capture(pid)
			if err != nil {
				return err
			}
			lap(1)
			s, err := Inject(th, Options{SyscallAt: instr, Escape: &escape})
			if err != nil {
				return err
			}
			lap(2)
			if _, err := s.Run(prog); err != nil {
				return err
			}
			lap(3)
			if err := s.Eject(); err != nil {
				return err
			}
			lap(4)
			if err := ptrace.Detach(pid, 0); err != nil {
				return err
			}
			lap(5)
		}
		for i, name := range []string{"stop", "capture", "inject", "run", "eject", "detach"} {
			b.ReportMetric(float64(phases[i].Nanoseconds())/float64(b.N)/1000, "µs/"+name)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkInjectMany compares 200 tasks one by one with all at the same time, per task.
func BenchmarkInjectMany(b *testing.B) {
	const n = 200
	var pids []int
	for range n {
		pids = append(pids, target(b, "sleep", "1000"))
	}
	prog, _, _ := collectProgram()
	for _, batch := range []bool{false, true} {
		name := map[bool]string{false: "one by one", true: "at once"}[batch]
		b.Run(name, func(b *testing.B) {
			tr := ptrace.NewTracer()
			defer tr.Close()
			if err := tr.Do(func() error { return injectMany(b, pids, prog, batch) }); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func injectMany(b *testing.B, pids []int, prog *Program, batch bool) error {
	var leaders []*Thread
	for _, pid := range pids {
		th, err := hold(pid)
		if err != nil {
			return err
		}
		leaders = append(leaders, th)
	}
	size := len(pids)
	if !batch {
		size = 1
	}
	b.ResetTimer()
	for range b.N {
		for at := 0; at < len(leaders); at += size {
			some := leaders[at : at+size]
			sessions, errs := InjectAll(some, make([]Options, size))
			if err := errors.Join(errs...); err != nil {
				return err
			}
			for _, s := range sessions {
				if err := s.Start(prog); err != nil {
					return err
				}
			}
			for _, s := range sessions {
				if _, err := s.Finish(); err != nil {
					return err
				}
			}
			if err := errors.Join(EjectAll(sessions)...); err != nil {
				return err
			}
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(pids)), "µs/task")
	for _, pid := range pids {
		if err := ptrace.Detach(pid, 0); err != nil {
			return err
		}
	}
	return nil
}
