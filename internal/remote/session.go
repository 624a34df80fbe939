package remote

import (
	"errors"

	"cryo/arch"
	"cryo/internal/procfs"
	"cryo/internal/vma"
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
	free      *[]buffer // one list for all tasks that share the area
	status    procfs.Status

	split    bool // the interpreter's page is not writable
	restored bool // made by Spawn: there is no work of its own to go back to
	shares   bool // the area is that of another task, whose memory this one shares (CLONE_VM)
	hole     uint64
	hint     uint64 // where the area is asked for
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
	// Mappings are those of the stopped task, nil if they are not known.
	Mappings []vma.Mapping
	// Shared says that the task shares its memory with another that has an engine.
	Shared bool
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
	return alignUp(arch.BlobPage+uint64(slots)*uint64(slotStride(slotSize))+lentSize, arch.BlobPage)
}

// A slot is a signal frame and a program buffer.
func slotStride(slotSize int) int { return alignUp(slotSize, 64) + frameSize() }

func frameSize() int { return alignUp(arch.SigFrameSize(), 64) }

// take gives a slot the first free buffer.
func (s *Session) take(sl *Slot) {
	b := (*s.free)[0]
	*s.free = (*s.free)[1:]
	sl.base, sl.frame, sl.size = b.base, b.frame, b.size
}

// CrashSafe says whether the task goes on by itself when the tracer dies during a program of its leader.
func (s *Session) CrashSafe() bool { return s.leader.crashSafe() }

// Area is the memory the engine has in the task: not part of the task.
func (s *Session) Area() Area { return s.area }

// Spare is a page of the engine's memory that short programs do not use. It may be one that cannot be read for a moment: to
// find out about a userfaultfd.
func (s *Session) Spare() uint64 {
	return (s.leader.base+uint64(s.leader.size))&^(arch.BlobPage-1) - arch.BlobPage
}

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
	sl, err := s.slotFor(t)
	if err != nil {
		return nil, err
	}
	return sl, sl.enter()
}

// StartOn is Enter and Slot.Start in one, with half of the requests.
func (s *Session) StartOn(t *Thread, p *Program) (*Slot, error) {
	sl, err := s.slotFor(t)
	if err != nil {
		return nil, err
	}
	if err := sl.launch(p); err != nil {
		return nil, errors.Join(err, sl.Leave())
	}
	return sl, nil
}

// slotFor takes a free slot for a thread, which has not entered it yet.
func (s *Session) slotFor(t *Thread) (*Slot, error) {
	if len(*s.free) == 0 {
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
	return sl, nil
}

// Leave gives the thread its own state back, still stopped, and frees its slot. A thread of a restored task has no state
// of its own yet; its slot is freed.
func (sl *Slot) Leave() error {
	var err error
	s := sl.session
	if !s.restored {
		err = sl.leave()
	}
	*s.free = append(*s.free, buffer{base: sl.base, frame: sl.frame, size: sl.size})
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
