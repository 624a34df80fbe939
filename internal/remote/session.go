package remote

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
)

// Session is the engine inside one task: the interpreter, and buffers for programs.
type Session struct {
	leader    *Slot
	area      Area
	code      uint64 // address of the interpreter
	instr     uint64 // address of a system call instruction outside of the area, for removing it
	escape    Escape
	frame     uint64 // where the leader's signal frame for its escape is, 0 when it is not there
	frameSize int
	free      []buffer
	status    procfs.Status

	split    bool // the interpreter's page is not writable
	restored bool // made by Spawn: there is no work of its own to go back to
	hole     uint64
}

// Area is memory the engine has in a task.
type Area struct{ Start, Size uint64 }

// End is the first address behind the area.
func (a Area) End() uint64 { return a.Start + a.Size }

// buffer is the place of a slot.
type buffer struct {
	base, frame uint64
	size        int
}

// Options say how the engine is put into a task. The zero value does for one program at a time.
type Options struct {
	// SlotSize is the size in bytes of each program buffer, 32 KiB if 0. Longer programs are split.
	SlotSize int
	// Slots is how many threads run programs at the same time, 1 if 0.
	Slots int
	// SyscallAt is the address of a system call instruction in the task, from FindSyscall before the freeze. It is
	// looked for if 0.
	SyscallAt uint64
	// Escape is what FindEscape found in the task before the freeze. It is looked for if nil.
	Escape *Escape
	// Status is /proc/PID/status of the stopped leader. It is read if nil.
	Status *procfs.Status
	// PtraceOptions are the options the tracee has; what the engine needs is added.
	PtraceOptions int
	// Breakpoints makes programs stop by a breakpoint even where a signal could be used. A task whose tracer dies
	// during a program dies too then.
	Breakpoints bool
}

const defaultSlotSize = 32 << 10

// AreaSize is how much memory slots program buffers of slotSize bytes take in a task, with the interpreter.
func AreaSize(slots, slotSize int) uint64 {
	return alignUp(arch.BlobPage+uint64(slots)*uint64(slotStride(slotSize)), arch.BlobPage)
}

// A slot is a signal frame and a program buffer.
func slotStride(slotSize int) int { return alignUp(slotSize, 64) + frameSize() }

func frameSize() int { return alignUp(arch.SigFrameSize(), 64) }

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
	flags, at := uint64(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), uint64(engineHint)
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

// prepare decides everything that can be decided before the task is touched, and blocks its signals.
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
	s := &Session{status: *o.Status, instr: o.SyscallAt, area: Area{Size: AreaSize(max(o.Slots, 1), o.SlotSize)}}
	s.leader = &Slot{session: s, thread: leader}
	if o.Escape == nil {
		e, err := findEscape(leader)
		if err != nil {
			return nil, err
		}
		o.Escape = &e
	}
	s.escape = *o.Escape
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
	if t.Dispatch.On() {
		if err := ptrace.SetSyscallDispatch(t.TID, ptrace.SyscallDispatch{}); err != nil {
			return err
		}
	}
	options |= ptrace.OptSysGood
	if s.status.Seccomp == 0 && t.Seccomp == 0 {
		return ptrace.SetOptions(t.TID, options)
	}
	if err := ptrace.SetOptions(t.TID, options|ptrace.OptSuspendSeccomp); err != nil {
		return &SeccompError{t.TID, err}
	}
	return nil
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
	for i := range max(o.Slots, 1) {
		frame := s.area.Start + arch.BlobPage + uint64(i*slotStride(size))
		s.free = append(s.free, buffer{frame: frame, base: frame + uint64(frameSize()), size: size})
	}
	s.take(s.leader)
	if !o.Breakpoints {
		s.leader.signal = s.chooseSignal(s.leader.thread)
	}
	return s.leader.enter()
}

func (s *Session) writeCode() error {
	if arch.NeedsICacheFlush || s.split {
		return ptrace.PokeMemory(s.leader.thread.TID, s.code, labelledCode(s.area.Size))
	}
	return ptrace.WriteMemory(s.leader.thread.TID, s.code, labelledCode(s.area.Size))
}

// take gives a slot the first free buffer.
func (s *Session) take(sl *Slot) {
	b := s.free[0]
	s.free = s.free[1:]
	sl.base, sl.frame, sl.size = b.base, b.frame, b.size
}

// stopSignals are the signals a program may stop with: whoever does not handle them ignores them.
var stopSignals = [...]syscall.Signal{syscall.SIGURG, syscall.SIGWINCH, syscall.SIGCHLD}

// chooseSignal finds a signal that means nothing to the thread: not handled, not pending, not blocked to be read
// otherwise. 0 if there is none.
func (s *Session) chooseSignal(t *Thread) syscall.Signal {
	if s.restored {
		return restoreSignal
	}
	for _, sig := range stopSignals {
		if s.meansNothing(t, sig) {
			return sig
		}
	}
	if s.meansNothing(t, syscall.SIGCONT) && s.mayContinue(t) {
		return syscall.SIGCONT
	}
	return 0
}

func (s *Session) meansNothing(t *Thread, sig syscall.Signal) bool {
	return (s.status.SigCgt|s.status.SigPnd|s.status.ShdPnd|t.SigMask)&signalBit(sig) == 0
}

func signalBit(sig syscall.Signal) uint64 { return 1 << (sig - 1) }

// mayContinue says whether SIGCONT has no other effect than to be ignored: the task is not in a group-stop, and no signal
// that stops it is pending. It is for Go programs, which handle everything else.
func (s *Session) mayContinue(t *Thread) bool {
	stops := signalBit(syscall.SIGSTOP) | signalBit(syscall.SIGTSTP) | signalBit(syscall.SIGTTIN) | signalBit(syscall.SIGTTOU)
	if (s.status.SigPnd|s.status.ShdPnd)&stops != 0 {
		return false
	}
	si, err := ptrace.SigInfo(t.TID)
	return err == nil && si.Signo == int32(syscall.SIGTRAP) && si.Code == int32(syscall.SIGTRAP)|ptrace.EventStop<<8
}

// CrashSafe says whether the task goes on by itself when the tracer dies during a program of its leader.
func (s *Session) CrashSafe() bool { return s.leader.crashSafe() }

// Area is the memory the engine has in the task: not part of the task.
func (s *Session) Area() Area { return s.area }

// Leader is the slot of the thread the engine was injected by.
func (s *Session) Leader() *Slot { return s.leader }

// Run runs a program on the leader.
func (s *Session) Run(p *Program) (*Results, error) { return s.leader.Run(p) }

// Start starts a program on the leader; Finish waits for it.
func (s *Session) Start(p *Program) error { return s.leader.Start(p) }

// Finish waits for the program Start started.
func (s *Session) Finish() (*Results, error) { return s.leader.Finish() }

// ErrNoSlot says that all program buffers of a session are taken.
var ErrNoSlot = errors.New("no free program buffer in the task")

// Enter gives another stopped thread of the task a free slot. Leave gives it back.
func (s *Session) Enter(t *Thread) (*Slot, error) {
	if len(s.free) == 0 {
		return nil, ErrNoSlot
	}
	sl := &Slot{session: s, thread: t}
	if s.restored {
		sl.signal = s.leader.signal
	} else {
		if err := s.adopt(t, 0); err != nil {
			return nil, err
		}
		if s.leader.signal != 0 {
			sl.signal = s.chooseSignal(t)
		}
	}
	s.take(sl)
	return sl, sl.enter()
}

// Leave gives the thread its own state back, still stopped, and frees its slot. A thread of a restored task has no state
// of its own yet; its slot is freed.
func (sl *Slot) Leave() error {
	var err error
	s := sl.session
	if !s.restored {
		err = sl.leave()
	}
	s.free = append(s.free, buffer{base: sl.base, frame: sl.frame, size: sl.size})
	return err
}

// RunOn runs a program on another stopped thread of the task: Enter, Run and Leave in one.
func (s *Session) RunOn(t *Thread, p *Program) (*Results, error) {
	if t == s.leader.thread {
		return s.Run(p)
	}
	sl, err := s.Enter(t)
	if err != nil {
		return nil, err
	}
	res, err := sl.Run(p)
	return res, errors.Join(err, sl.Leave())
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
			if errs[i] == nil {
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

// remoteCall makes one system call in the leader, at a system call instruction of the task.
//
// It ends in a stop from which the kernel restarts the system call the thread was interrupted in, once its registers are
// back: an interrupt on the way to user mode, asked for while the thread stands at the entry of the call. The stop at the
// exit of the call would not do. A single step would, but it leaves the thread in stepping mode, which kills it if the
// tracer dies before it is let go, and its signal is a forced one that resets an ignored SIGTRAP.
func (s *Session) remoteCall(nr uint64, args ...uint64) (int64, error) {
	if err := s.beginCall(nr, args...); err != nil {
		return 0, err
	}
	if err := s.interruptCall(); err != nil {
		return 0, err
	}
	return s.endCall()
}

// beginCall sends the leader off to the entry of the call.
func (s *Session) beginCall(nr uint64, args ...uint64) error {
	tid := s.leader.thread.TID
	r, err := s.setupCall(nr, args)
	if err != nil {
		return err
	}
	if err := ptrace.SetRegs(tid, &r); err != nil {
		return err
	}
	if err := ptrace.SetSigMask(tid, ^uint64(0)); err != nil {
		return err
	}
	return ptrace.Syscall(tid, 0)
}

// interruptCall waits until the leader has got there and sends it off to the end of the call.
func (s *Session) interruptCall() error {
	tid := s.leader.thread.TID
	if err := awaitInCall(tid, ptrace.Syscall, ptrace.Status.SyscallStop); err != nil {
		return err
	}
	if err := ptrace.Interrupt(tid); err != nil {
		return err
	}
	return ptrace.Cont(tid, 0)
}

// endCall waits for the end of the call and returns its result.
func (s *Session) endCall() (int64, error) {
	tid := s.leader.thread.TID
	interrupted := func(st ptrace.Status) bool { return st.Event() == ptrace.EventStop }
	if err := awaitInCall(tid, ptrace.Cont, interrupted); err != nil {
		return 0, err
	}
	var r arch.Regs
	err := ptrace.GetRegs(tid, &r)
	return r.SyscallResult(), err
}

// awaitInCall waits until a running thread has the stop wanted. From others it is resumed; stop signals take effect.
func awaitInCall(tid int, resume func(int, syscall.Signal) error, wanted func(ptrace.Status) bool) error {
	for {
		st, err := ptrace.Wait(tid)
		switch {
		case err != nil:
			return err
		case st.Gone():
			return fmt.Errorf("%v: %w", st, unix.ESRCH)
		case wanted(st):
			return nil
		}
		var sig syscall.Signal
		if st.Event() == 0 && !st.SyscallStop() {
			if sig = st.StopSignal(); sig != syscall.SIGSTOP {
				return fmt.Errorf("%v during a remote system call", st)
			}
		}
		if err := resume(tid, sig); err != nil {
			return err
		}
	}
}

// FindSyscall returns the address of a system call instruction in a task: in its vdso, or in any code it has mapped. It
// reads the task's memory and needs no stop.
func FindSyscall(pid int) (uint64, error) {
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return 0, err
	}
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if le.Uint64(auxv) == atSysinfoEhdr {
			if at := syscallIn(pid, le.Uint64(auxv[8:]), maxVDSO); at != 0 {
				return at, nil
			}
		}
	}
	return findSyscallInMaps(pid)
}
