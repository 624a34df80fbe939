package remote

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// TestRestartableSequence stops a thread inside a restartable sequence: it has to go on at the abort handler.
func TestRestartableSequence(t *testing.T) {
	v := startVictim(t, "rseq")
	tr := ptrace.NewTracer()
	defer tr.Close()
	inside := 0
	err := tr.Do(func() error {
		if err := ptrace.Seize(v.pid, 0); err != nil {
			return err
		}
		// On a busy machine the thread may not have run at all between two stops.
		for rounds := 0; rounds < 20 || inside == 0 && rounds < 5000; rounds++ {
			if _, err := ptrace.Stop(v.pid); err != nil {
				return err
			}
			var raw arch.Regs
			if err := ptrace.GetRegs(v.pid, &raw); err != nil {
				return err
			}
			th, err := Capture(v.pid)
			if err != nil {
				return err
			}
			if th.Rseq.Pointer == 0 {
				t.Skip("this kernel does not tell about restartable sequences")
			}
			var cs [32]byte
			if th.RseqCS != 0 {
				if err := ptrace.ReadMemory(v.pid, th.RseqCS, cs[:]); err != nil {
					return err
				}
			}
			if start := le.Uint64(cs[8:]); raw.PC()-start < le.Uint64(cs[16:]) {
				inside++
				if th.Regs.PC() != le.Uint64(cs[24:]) {
					t.Errorf("stopped at %#x in a sequence, goes on at %#x instead of %#x", raw.PC(), th.Regs.PC(), le.Uint64(cs[24:]))
				}
			}
			s, err := Inject(th, Options{})
			if err != nil {
				return err
			}
			b := NewBuilder("pid")
			b.Call(unix.SYS_GETPID).Expect(uint64(v.pid))
			if _, err := s.Run(b.Program()); err != nil {
				return err
			}
			if err := s.Eject(); err != nil {
				return err
			}
			if err := ptrace.Cont(v.pid, 0); err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // what is under test is any instant
		}
		if _, err := ptrace.Stop(v.pid); err != nil {
			return err
		}
		return ptrace.Detach(v.pid, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside == 0 {
		t.Error("never stopped inside the sequence")
	}
	v.ends(t)
}
