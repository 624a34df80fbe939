package remote

import (
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
