package remote

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
)

// SeccompError says that the seccomp rules of a task could not be suspended, so no program can run in it.
type SeccompError struct {
	TID int
	Err error
}

func (e *SeccompError) Error() string {
	return fmt.Sprintf("thread %d is under seccomp and it cannot be suspended (%v); CAP_SYS_ADMIN in the initial user namespace and a tool without seccomp filters are needed", e.TID, e.Err)
}

func (e *SeccompError) Unwrap() error { return e.Err }

// Inject puts the engine into the task of a stopped thread, which becomes the one that runs the session's own programs.
func Inject(leader *Thread, o Options) (*Session, error) {
	sessions, errs := InjectAll([]*Thread{leader}, []Options{o})
	return sessions[0], errs[0]
}

// InjectAll is Inject into many tasks, which work at the same time. Each task has a session or an error; one that has an
// error is as it was.
func InjectAll(leaders []*Thread, o []Options) ([]*Session, []error) {
	sessions, errs := make([]*Session, len(leaders)), make([]error, len(leaders))
	each := func(step func(i int, s *Session) error) {
		for i, s := range sessions {
			if errs[i] != nil {
				continue
			}
			if errs[i] = step(i, s); errs[i] != nil && s != nil {
				errs[i] = errors.Join(errs[i], s.takeBack())
			}
		}
	}
	each(func(i int, _ *Session) (err error) {
		if sessions[i], err = prepare(leaders[i], o[i]); err != nil {
			sessions[i] = nil
		}
		return err
	})
	each(func(_ int, s *Session) error {
		if err := s.openEscape(); err != nil {
			return err
		}
		return s.beginCall(unix.SYS_MMAP, s.mmapArgs(protRWX)...)
	})
	each(func(_ int, s *Session) error { return s.interruptCall() })
	each(func(i int, s *Session) error {
		addr, err := s.endCall()
		if err == nil {
			err = s.takeArea(addr)
		}
		if err == nil {
			err = s.settle(o[i])
		}
		if err == nil {
			err = s.closeEscape()
		}
		return err
	})
	for i, err := range errs {
		if err != nil {
			sessions[i] = nil
		}
	}
	return sessions, errs
}

// takeBack undoes a failed injection.
func (s *Session) takeBack() error {
	if s.area.Start != 0 {
		return s.Eject()
	}
	return s.restoreLeader()
}

const protRWX = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC

// mapArea makes the mapping of the engine.
func (s *Session) mapArea() error {
	addr, err := s.remoteCall(unix.SYS_MMAP, s.mmapArgs(protRWX)...)
	if err != nil {
		return err
	}
	return s.takeArea(addr)
}

// mmapArgs are the arguments of the call that maps the area: where it belongs in a restored task, anywhere in others.
func (s *Session) mmapArgs(prot uint64) []uint64 {
	flags, at := uint64(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), s.hint
	if s.restored {
		flags, at = flags|unix.MAP_FIXED_NOREPLACE, s.hole
	}
	return []uint64{at, s.area.Size, prot, flags, ^uint64(0), 0}
}

// takeArea takes over what the call that maps the area has returned. A task that has forbidden itself memory which is
// writable and executable (PR_SET_MDWE, kernel 6.3) gets the interpreter in a page that is only executable; the tracer
// can write to it.
func (s *Session) takeArea(addr int64) (err error) {
	if errnoOf(addr) == unix.EACCES {
		s.split = true
		if addr, err = s.remoteCall(unix.SYS_MMAP, s.mmapArgs(unix.PROT_READ|unix.PROT_EXEC)...); err != nil {
			return err
		}
	}
	tid := s.leader.thread.TID
	if errno := errnoOf(addr); errno != 0 {
		return fmt.Errorf("map %d bytes in task %d: %w", s.area.Size, tid, errno)
	}
	s.area.Start, s.code = uint64(addr), uint64(addr)
	if s.restored && s.area.Start != s.hole { // a kernel before 4.17 takes the address for a hint
		return fmt.Errorf("map the engine at %#x in task %d: %w", s.hole, tid, unix.EEXIST)
	}
	if !s.split {
		return nil
	}
	ret, err := s.remoteCall(unix.SYS_MPROTECT, s.area.Start+arch.BlobPage, s.area.Size-arch.BlobPage, unix.PROT_READ|unix.PROT_WRITE)
	if err == nil && ret != 0 {
		err = fmt.Errorf("make the engine's memory in task %d writable: %w", tid, errnoOf(ret))
	}
	return err
}

// engineHint is the address the engine asks for. Where the kernel grants it, as it mostly does, an engine that was left
// behind before anything was written into it can be told from a mapping of the task's own.
const engineHint = 0x10_c0ff_e000

// sharedHint is that of a task that shares its memory with another.
func sharedHint(pid int) uint64 { return engineHint + uint64(pid+1)<<20 }

// prepare decides everything that can be decided before the task is touched.
func prepare(leader *Thread, o Options) (*Session, error) {
	if o.SlotSize == 0 {
		o.SlotSize = defaultSlotSize
	}
	if o.Status == nil {
		var err error
		if o.Status, err = readStatus(leader.TID); err != nil {
			return nil, err
		}
	}
	s := &Session{status: *o.Status, instr: o.SyscallAt, area: Area{Size: AreaSize(max(o.Slots, 1), o.SlotSize)}, hint: engineHint}
	if o.Shared {
		s.hint = sharedHint(leader.TID)
	}
	s.leader = &Slot{session: s, thread: leader}
	if o.Escape == nil {
		e, err := findEscape(leader, o.Mappings)
		if err != nil {
			return nil, err
		}
		o.Escape = &e
	}
	s.escape = *o.Escape
	if err := leader.leaveEscape(s.escape); err != nil {
		return nil, err
	}
	if s.instr == 0 {
		s.instr = s.escape.call
	}
	if s.instr == 0 {
		var err error
		if s.instr, err = FindSyscall(leader.TID); err != nil {
			return nil, err
		}
	}
	return s, s.adopt(leader, o.PtraceOptions)
}

func readStatus(tid int) (*procfs.Status, error) {
	dir, err := procfs.OpenTask(tid)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Status()
}

// adopt sets the options of a thread that is going to run programs, and lifts what would keep it from making system calls.
func (s *Session) adopt(t *Thread, options int) error {
	filtered := s.status.Seccomp != 0 || t.Seccomp != 0
	options |= ptrace.OptSysGood
	if filtered {
		options |= ptrace.OptSuspendSeccomp
	}
	if options != t.Options {
		if err := ptrace.SetOptions(t.TID, options); err != nil {
			if filtered {
				return &SeccompError{t.TID, err}
			}
			return err
		}
		t.Options = options
	}
	if !t.Dispatch.On() {
		return nil
	}
	return ptrace.SetSyscallDispatch(t.TID, ptrace.SyscallDispatch{})
}

// settle fills the fresh mapping: code, free slots, the leader's slot.
func (s *Session) settle(o Options) error {
	if err := s.writeCode(); err != nil {
		return err
	}
	size := o.SlotSize
	if size == 0 {
		size = defaultSlotSize
	}
	size = alignUp(size, 64)
	s.free = &[]buffer{}
	for i := range max(o.Slots, 1) {
		frame := s.area.Start + arch.BlobPage + uint64(i*slotStride(size))
		*s.free = append(*s.free, buffer{frame: frame, base: frame + uint64(frameSize()), size: size})
	}
	s.take(s.leader)
	if !o.Breakpoints {
		s.leader.signal = s.chooseSignal(s.leader.thread)
	}
	return s.leader.enter()
}

func (s *Session) writeCode() error {
	if arch.NeedsICacheFlush || s.split {
		return ptrace.PokeMemory(s.leader.thread.TID, s.code, labelledCode(s.area.Size, s.leader.thread.TID))
	}
	return ptrace.WritePieces(s.leader.thread.TID, ptrace.Piece{Addr: s.code, Data: arch.Code()},
		ptrace.Piece{Addr: s.code + labelOffset, Data: label(s.area.Size, s.leader.thread.TID)})
}

// Eject takes the engine out of the task and gives the leader its own state back; the thread stays stopped. The slots
// of other threads have been left before.
func (s *Session) Eject() error { return EjectAll([]*Session{s})[0] }

// EjectAll is Eject from many tasks, which work at the same time.
func EjectAll(sessions []*Session) []error {
	errs := unmapAll(sessions)
	for i, s := range sessions {
		errs[i] = errors.Join(errs[i], s.restoreLeader())
	}
	return errs
}

// unmapAll unmaps the engine from many tasks, which work at the same time. Their leaders have nothing to go on with then.
func unmapAll(sessions []*Session) []error {
	errs := make([]error, len(sessions))
	each := func(step func(*Session) error) {
		for i, s := range sessions {
			if errs[i] == nil && !s.shares {
				errs[i] = step(s)
			}
		}
	}
	each(func(s *Session) error {
		if err := s.openEscape(); err != nil {
			return err
		}
		return s.beginCall(unix.SYS_MUNMAP, s.area.Start, s.area.Size)
	})
	each((*Session).interruptCall)
	each(func(s *Session) error {
		ret, err := s.endCall()
		if err == nil && errnoOf(ret) != 0 {
			err = fmt.Errorf("unmap the engine from task %d: %w", s.leader.thread.TID, errnoOf(ret))
		}
		return err
	})
	return errs
}
