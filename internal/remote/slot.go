package remote

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// Slot is a program buffer in a task, and the thread that runs programs in it. Threads of one task run programs at the
// same time when each has its own slot.
type Slot struct {
	session *Session
	thread  *Thread
	base    uint64         // address of the program buffer
	size    int            // of the buffer
	frame   uint64         // address of the signal frame
	signal  syscall.Signal // programs stop by it, 0: by a breakpoint
	buf     []byte         // for reading back
	run     *running
	born    []int // threads and tasks the running program has cloned, not yet handed out
}

// running is a program under way.
type running struct {
	program *Program
	results *Results
	chunks  []*chunk // the first is in the buffer
}

// Thread is the thread that runs this slot's programs.
func (s *Slot) Thread() *Thread { return s.thread }

// Size is how large a program may be to run in one piece.
func (s *Slot) Size() int { return s.size }

// Run runs a program to its end and returns its results. A program with traps stops at the first; see Continue.
func (s *Slot) Run(p *Program) (*Results, error) {
	if err := s.Start(p); err != nil {
		return nil, err
	}
	return s.Finish()
}

// Start sets the thread running the program. Every Start is followed by one Finish; between them other slots may be
// started, so that many tasks work at the same time.
func (s *Slot) Start(p *Program) error {
	if err := s.load(p); err != nil {
		return err
	}
	return s.startChunk()
}

// load makes p the program that runs next.
func (s *Slot) load(p *Program) error {
	if p.Sleeps() && s.thread.Regs.Restart() == arch.RestartByBlock {
		return fmt.Errorf("program %q may sleep, but thread %d has to resume system call %s later", p.name, s.thread.TID,
			arch.SyscallName(int(s.thread.Regs.SyscallNr())))
	}
	chunks, err := p.split(s.size)
	if err != nil {
		return err
	}
	s.run = &running{program: p, results: newResults(p), chunks: chunks}
	return nil
}

// launch enters the slot and starts p. All is written before the thread is led there. If the tracer dies before the mask
// is set the thread runs the program under its own, and finds the way back no less.
func (s *Slot) launch(p *Program) error {
	if err := s.load(p); err != nil || s.session.restored {
		return cmp.Or(err, s.startChunk())
	}
	room := frames.Get().(*[]byte)
	defer frames.Put(room)
	b, err := s.signalFrame((*room)[:0])
	if err != nil {
		return err
	}
	at := len(b)
	b = append(b, s.run.chunks[0].assemble(p, s.run.results)...)
	s.putHeader(b[at:])
	*room = b
	tid := s.thread.TID
	if err := ptrace.WriteMemory(tid, s.frame, b); err != nil {
		return err
	}
	r := s.thread.Regs.SetupBlob(s.session.code, s.base, s.base+arch.HdrSize)
	if err := ptrace.SetRegs(tid, &r); err != nil {
		return err
	}
	if err := ptrace.SetSigMask(tid, s.programMask()); err != nil {
		return err
	}
	return ptrace.Cont(tid, 0)
}

func (s *Slot) startChunk() error {
	c := s.run.chunks[0]
	b := c.assemble(s.run.program, s.run.results)
	first := s.base + arch.HdrSize
	rest := b[arch.HdrSize+arch.OpSize:]
	// The first operation comes last: until it is there, a thread that is left alone finds the way back in its place,
	// not a program that was cut short when the tracer was killed.
	err := ptrace.WritePieces(s.thread.TID, ptrace.Piece{Addr: first + arch.OpSize, Data: rest},
		ptrace.Piece{Addr: s.base, Data: s.header()}, ptrace.Piece{Addr: first, Data: b[arch.HdrSize:][:arch.OpSize]})
	if err != nil {
		return err
	}
	return s.resumeAt(first)
}

// header is the header of a program buffer.
func (s *Slot) header() []byte {
	b := make([]byte, arch.HdrSize)
	s.putHeader(b)
	return b
}

func (s *Slot) putHeader(b []byte) {
	le.PutUint64(b[arch.HdrState:], arch.StateRunning)
	le.PutUint64(b[arch.HdrSignal:], uint64(s.signal))
	le.PutUint64(b[arch.HdrFrame:], s.frame)
}

// resumeAt lets the thread run the interpreter from the operation at an address.
func (s *Slot) resumeAt(op uint64) error {
	r := s.thread.Regs.SetupBlob(s.session.code, s.base, op)
	if err := ptrace.SetRegs(s.thread.TID, &r); err != nil {
		return err
	}
	return ptrace.Cont(s.thread.TID, 0)
}

// Finish waits for the program started last and returns its results. If a checked call failed the error is a
// *CallError, and the results hold what came before it.
func (s *Slot) Finish() (*Results, error) {
	r := s.run
	for {
		if err := s.await(); err != nil {
			return r.results, err
		}
		c := r.chunks[0]
		r.results.collect(c, s.buf)
		at := s.opAt(c)
		if state := le.Uint64(s.buf[arch.HdrState:]); state != arch.StateStopped {
			return r.results, s.failure(state, at)
		}
		if at < c.end && at < len(r.program.ops)-1 {
			return r.results, nil // a trap
		}
		if len(r.chunks) == 1 {
			s.ended()
			return r.results, nil
		}
		r.chunks = r.chunks[1:]
		if err := s.startChunk(); err != nil {
			return r.results, err
		}
	}
}

// ended forgets the program: a tree has thousands of slots. The results are the caller's.
func (s *Slot) ended() { s.run, s.buf = nil, nil }

// Continue goes on after a trap, to the next trap or the end. What Results say then includes what came before.
func (s *Slot) Continue() (*Results, error) {
	if s.run == nil || s.opAt(s.run.chunks[0]) >= len(s.run.program.ops)-1 {
		return nil, errors.New("the program has ended")
	}
	next := le.Uint64(s.buf[arch.HdrOp:]) + arch.OpSize
	var state [8]byte
	if err := ptrace.WriteMemory(s.thread.TID, s.base+arch.HdrState, state[:]); err != nil {
		return nil, err
	}
	if err := s.resumeAt(next); err != nil {
		return nil, err
	}
	return s.Finish()
}

// opAt is the number of the operation the chunk stopped at.
func (s *Slot) opAt(c *chunk) int {
	return c.first + int(le.Uint64(s.buf[arch.HdrOp:])-s.base-arch.HdrSize)/arch.OpSize
}

func (s *Slot) failure(state uint64, at int) error {
	if state == arch.StateFailed && at < len(s.run.program.ops) {
		result := int64(le.Uint64(s.buf[arch.HdrResult:]))
		return s.run.results.callError(s.thread.TID, at, result)
	}
	return fmt.Errorf("program %q in thread %d: the interpreter stopped in state %d at op %d", s.run.program.name, s.thread.TID, state, at)
}

// await waits until the running chunk has stopped and reads its buffer back. Events on the way are dealt with: births
// are noted, stop signals take effect (the task counts as stopped, yet the program goes on), an interrupt is void.
func (s *Slot) await() error {
	tid := s.thread.TID
	for {
		st, err := ptrace.Wait(tid)
		if err != nil {
			return fmt.Errorf("program %q: %w", s.run.program.name, err)
		}
		if st.Gone() {
			return fmt.Errorf("program %q: %v: %w", s.run.program.name, st, unix.ESRCH)
		}
		var sig syscall.Signal
		switch {
		case st.Event() == unix.PTRACE_EVENT_FORK || st.Event() == unix.PTRACE_EVENT_VFORK || st.Event() == unix.PTRACE_EVENT_CLONE:
			msg, err := ptrace.EventMessage(tid)
			if err != nil {
				return err
			}
			s.born = append(s.born, int(msg))
		case st.Event() != 0 || st.SyscallStop():
		default:
			sig = st.StopSignal()
			stopped, err := s.readBack()
			if stopped || err != nil {
				return err
			}
			if sig == syscall.SIGSEGV || sig == syscall.SIGBUS || sig == syscall.SIGILL || sig == syscall.SIGTRAP {
				return s.fault(sig)
			}
		}
		if err := ptrace.Cont(tid, sig); err != nil {
			return err
		}
	}
}

// readBack reads what the chunk may have changed, and says whether it has come to a stop.
func (s *Slot) readBack() (bool, error) {
	// Results keep parts of the buffer, so each chunk gets a new one.
	s.buf = make([]byte, s.run.chunks[0].readBack)
	err := ptrace.ReadMemory(s.thread.TID, s.base, s.buf)
	return le.Uint64(s.buf[arch.HdrState:]) != arch.StateRunning, err
}

func (s *Slot) fault(sig syscall.Signal) error {
	var r arch.Regs
	if err := ptrace.GetRegs(s.thread.TID, &r); err != nil {
		return err
	}
	si, _ := ptrace.SigInfo(s.thread.TID)
	op := r.BlobOp()
	i := s.run.chunks[0].first + int(int64(op-s.base-arch.HdrSize)/arch.OpSize)
	text := "outside of the program"
	if i >= 0 && i < len(s.run.program.ops) {
		text = s.run.program.opText(i)
	}
	return fmt.Errorf("program %q in thread %d, op %d: %s: %v at %#x (code %d)", s.run.program.name, s.thread.TID, i, text, sig, r.PC(), si.Code)
}

// enter takes the thread over: from here on, whenever it is left alone it goes back to its own work by itself. A thread of
// a restored task has the mask of the one that cloned it, and nowhere to go back to.
func (s *Slot) enter() error {
	tid := s.thread.TID
	if s.session.restored && s != s.session.leader {
		return nil
	}
	if err := s.park(); err != nil {
		return err
	}
	return ptrace.SetSigMask(tid, s.programMask())
}

// crashSafe says whether the thread goes back to its own work when its tracer is gone.
func (s *Slot) crashSafe() bool {
	return s.signal != 0 && !s.session.restored && !s.thread.HasShadowStack()
}

// frames are buffers for signal frames with what follows them.
var frames = sync.Pool{New: func() any { return new([]byte) }}

// park points the registers at an operation that leaves through the signal frame. A restored task has nothing to go back
// to and dies with its tracer.
func (s *Slot) park() error {
	if s.session.restored {
		return nil
	}
	tid := s.thread.TID
	room := frames.Get().(*[]byte)
	defer frames.Put(room)
	b, err := s.signalFrame((*room)[:0])
	if err != nil {
		return err
	}
	b = append(b, make([]byte, arch.HdrSize+arch.OpSize)...)
	s.putHeader(b[frameSize():])
	op := b[frameSize()+arch.HdrSize:]
	op[arch.OpKind] = arch.KindSigreturn
	le.PutUint64(op[arch.OpArg:], s.frame)
	*room = b
	if err := ptrace.WriteMemory(tid, s.frame, b); err != nil {
		return err
	}
	r := s.thread.Regs.SetupBlob(s.session.code, s.base, s.base+arch.HdrSize)
	return ptrace.SetRegs(tid, &r)
}

// signalFrame appends to room what is at the slot's frame, up to the program buffer, which follows it.
func (s *Slot) signalFrame(room []byte) ([]byte, error) {
	b, err := arch.SigFrame(room, &s.thread.Regs, s.thread.XState, s.thread.SigMask, s.frame)
	if err != nil {
		return nil, err
	}
	return append(b, make([]byte, frameSize()-(len(b)-len(room)))...), nil
}

// programMask blocks everything but what a program stops with.
func (s *Slot) programMask() uint64 {
	sig := s.signal
	if sig == 0 {
		sig = syscall.SIGTRAP
	}
	return ^(uint64(1) << (sig - 1))
}

// leave gives the thread its signal mask and registers back, in that order: until the registers are set it would go back
// by itself.
func (s *Slot) leave() error {
	if err := ptrace.SetSigMask(s.thread.TID, s.thread.SigMask); err != nil {
		return err
	}
	return s.thread.putBack()
}

// putBack gives the thread its registers back, what else foreign code destroys, and what adopt lifted.
func (t *Thread) putBack() error {
	if err := ptrace.RestoreVolatile(t.TID, &t.Extra); err != nil {
		return err
	}
	if t.Dispatch.On() {
		if err := ptrace.SetSyscallDispatch(t.TID, t.Dispatch); err != nil {
			return err
		}
	}
	return ptrace.SetRegs(t.TID, &t.Regs)
}
