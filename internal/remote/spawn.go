package remote

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

const sysPpoll = unix.SYS_PPOLL

// SpawnOptions say which task Spawn makes.
type SpawnOptions struct {
	// TID is the pid the task gets, in its own pid namespace first and then in those around it, as set_tid of clone3
	// wants it. Empty: any. Kernel 5.5.
	TID []int
	// Flags are CLONE_NEW* and CLONE_PARENT. Kernel 5.3.
	Flags uint64
	// ExitSignal is the signal the parent gets when the task ends, SIGCHLD if 0.
	ExitSignal syscall.Signal
	// Cgroup is a descriptor of the cgroup v2 directory the task is born in, 0 for the caller's own. Kernel 5.7.
	Cgroup int
	// Inherit are descriptors of the caller the task keeps, under the same numbers. All others without close-on-exec
	// flag stay open too.
	Inherit []int
	// Hole is where the engine lies: free in the task to be restored and in all children that will be cloned from
	// it. HoleSize says how large it has to be.
	Hole Area
	// SlotSize and Slots as in Options.
	SlotSize, Slots int
	// NoExec skips the memfd and makes the task a fork of the caller, as is done where executables in a memfd are
	// forbidden (vm.memfd_noexec).
	NoExec bool
}

// HoleSize is how large a hole the engine needs with slots program buffers of slotSize bytes (0: defaults).
func HoleSize(slots, slotSize int) uint64 {
	if slotSize == 0 {
		slotSize = defaultSlotSize
	}
	return AreaSize(max(slots, 1), slotSize) + stubSize
}

// spawnTracing are the options restored tasks are traced with: whatever they clone is traced from its first
// instruction, and nothing of them outlives the tracer.
const spawnTracing = ptrace.OptFork | ptrace.OptVfork | ptrace.OptClone | ptrace.OptExitKill | ptrace.OptSysGood

// restoreSignal is what programs stop with in restored tasks; see Session.StopWith.
const restoreSignal = syscall.SIGURG

// Spawn makes a new task with a nearly empty address space and the engine in it, stopped under the calling tracer: call it
// inside Tracer.Do. The task is a child of the tracer's thread (of its parent with CLONE_PARENT).
//
// The task is exec'ed from a memfd, so it has nothing mapped but a stack, the vdso and the engine, the latter in anonymous
// memory: its exe link can be set. Where a memfd cannot be executed the task is a fork of the caller instead, with all of
// the caller's memory still mapped; what removes the stack removes that as well.
func Spawn(o SpawnOptions) (*Session, error) {
	if o.Hole.Size < HoleSize(o.Slots, o.SlotSize) {
		return nil, fmt.Errorf("a hole of %d bytes at %#x is too small for the restorer, it needs %d", o.Hole.Size, o.Hole.Start, HoleSize(o.Slots, o.SlotSize))
	}
	spawn := spawnExec
	if o.NoExec {
		spawn = spawnFork
	}
	var pid int
	err := retryTaken(func() []int { return o.TID }, func() (err error) {
		pid, err = spawn(&o)
		return err
	})
	if !o.NoExec && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSYS)) {
		o.NoExec = true
		pid, err = spawnFork(&o)
	}
	if err != nil {
		return nil, fmt.Errorf("make task %v: %w", o.TID, err)
	}
	s, err := takeOver(pid, &o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over new task %d: %w", pid, err), ptrace.Kill(pid))
	}
	return s, nil
}

// spawnExec clones a child that shares the caller's memory until it has executed the stub.
func spawnExec(o *SpawnOptions) (int, error) {
	image, err := stubELF(o.stub())
	if err != nil {
		return 0, err
	}
	fd, err := ExecutableMemfd("restorer", image)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	p, exec := execProgram(o, fd)
	mem, err := unix.Mmap(-1, 0, alignUp(p.Size(), arch.BlobPage), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	copy(mem, whole(p))
	pid, err := o.clone(unix.CLONE_VM|unix.CLONE_VFORK, arch.BlobHere(), uintptr(unsafe.Pointer(&mem[0])))
	if err != nil {
		return 0, err
	}
	// The child is past its exec, or has ended; what it wrote into shared memory says which.
	res := newResults(p)
	res.collect(p.whole(), mem)
	if v, ran := res.Raw(exec); ran {
		ptrace.Wait(pid)
		return 0, res.callError(pid, exec.index, v)
	}
	return pid, nil
}

// ExecutableMemfd makes a memfd (kernel 3.17) that holds an executable. It is closed on exec. Whether it may be executed
// is for vm.memfd_noexec to say.
func ExecutableMemfd(name string, image []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC) // MFD_EXEC: kernel 6.3
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("make a memfd for the %s: %w", name, err)
	}
	if n, err := unix.Write(fd, image); err != nil || n != len(image) {
		unix.Close(fd)
		return -1, fmt.Errorf("write the executable of the %s: %d of %d bytes, %w", name, n, len(image), err)
	}
	return fd, nil
}

// execProgram is what the child of spawnExec does, and the operation that is its exec.
func execProgram(o *SpawnOptions, fd int) (*Program, Op) {
	b := NewBuilder("become the restorer")
	prepareChild(b, o)
	for _, keep := range o.Inherit {
		b.Call(unix.SYS_FCNTL, Imm(keep), Imm(unix.F_SETFD), Imm(0)).Discard()
	}
	keepCapabilities(b)
	empty := b.String("")
	argv := b.InOut(make([]byte, 16))
	b.Store(argv, b.String("restorer"))
	exec := b.Call(unix.SYS_EXECVEAT, Imm(fd), empty, argv, b.Zero(8), Imm(unix.AT_EMPTY_PATH))
	b.Call(unix.SYS_EXIT_GROUP, Imm(127))
	return b.Program(), exec
}

// prepareChild ties the child's life to the tracer's until the tracer has seized it. A tracer that has died before the
// child could ask for that signal is the child's parent no more. In a pid namespace of its own the child cannot tell: its
// parent is 0.
func prepareChild(b *Builder, o *SpawnOptions) {
	if o.Flags&unix.CLONE_PARENT != 0 {
		return
	}
	b.Call(unix.SYS_PRCTL, Imm(unix.PR_SET_PDEATHSIG), Imm(unix.SIGKILL)).Discard()
	live := b.NewLabel()
	parent := b.Call(unix.SYS_GETPPID)
	b.JumpIf(parent, Eq, Imm(unix.Getpid()), live)
	b.JumpIf(parent, Eq, Imm(0), live)
	b.Call(unix.SYS_EXIT_GROUP, Imm(127)).Discard()
	b.Label(live)
}

// keepCapabilities makes the capabilities of a caller that is not root survive the exec.
func keepCapabilities(b *Builder) {
	if unix.Geteuid() == 0 {
		return
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return
	}
	for i := range data {
		data[i].Inheritable |= data[i].Permitted
	}
	hdrBytes := unsafe.Slice((*byte)(unsafe.Pointer(&hdr)), unsafe.Sizeof(hdr))
	dataBytes := unsafe.Slice((*byte)(unsafe.Pointer(&data)), unsafe.Sizeof(data))
	b.Call(unix.SYS_CAPSET, b.Bytes(hdrBytes), b.Bytes(dataBytes)).Discard()
	for set := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32; set != 0; set &= set - 1 {
		b.Call(unix.SYS_PRCTL, Imm(unix.PR_CAP_AMBIENT), Imm(unix.PR_CAP_AMBIENT_RAISE), Imm(bits.TrailingZeros64(set)), Imm(0), Imm(0)).Discard()
	}
}

// spawnFork clones a copy of the caller that goes on in the engine, which is mapped into the hole of the caller for that
// moment.
func spawnFork(o *SpawnOptions) (int, error) {
	at, err := mapAt(o.stub(), stubSize)
	if err != nil {
		return 0, fmt.Errorf("map the restorer at %#x of this process: %w", o.stub(), err)
	}
	defer unix.MunmapPtr(at, stubSize)
	mem := unsafe.Slice((*byte)(at), stubSize)
	copy(mem[stubHeader:], arch.Code())
	b := NewBuilder("become the restorer")
	prepareChild(b, o)
	closeOthers(b, o)
	stack := b.Zero(24)
	b.Store32(stack.At(8), Imm(2)) // SS_DISABLE: the Go runtime's alternate signal stack
	b.Call(unix.SYS_SIGALTSTACK, stack, Imm(0)).Discard()
	again := b.NewLabel()
	b.Label(again)
	b.Call(sysPpoll, Imm(0), Imm(0), Imm(0), Imm(0), Imm(0)).Discard()
	b.Jump(again)
	program := whole(b.Program())
	if len(program) > arch.BlobPage {
		return 0, fmt.Errorf("%d descriptors to inherit are too many", len(o.Inherit))
	}
	copy(mem[stubBuffer:], program)
	return o.clone(0, uintptr(at)+stubHeader, uintptr(at)+stubBuffer)
}

// closeOthers closes what an exec would have closed: everything but standard streams and what is to be inherited.
func closeOthers(b *Builder, o *SpawnOptions) {
	from := 3
	keep := append([]int(nil), o.Inherit...)
	for {
		next := 1 << 30
		for _, fd := range keep {
			if fd >= from && fd < next {
				next = fd
			}
		}
		if next > from {
			b.Call(unix.SYS_CLOSE_RANGE, Imm(from), Imm(next-1), Imm(0)).Discard()
		}
		if next == 1<<30 {
			return
		}
		from = next + 1
	}
}

// mapAt makes an anonymous mapping of this process at exactly addr.
func mapAt(addr, size uint64) (unsafe.Pointer, error) {
	return unix.MmapPtr(-1, 0, unsafe.Add(nil, uintptr(addr)), uintptr(size), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE)
}

// stub is where the executable lies: at the end of the hole, the engine's final place is at its beginning.
func (o *SpawnOptions) stub() uint64 { return (o.Hole.End() - stubSize) &^ (arch.BlobPage - 1) }

// clone makes the child that runs the program buffer at base in the interpreter at code, with all signals blocked.
func (o *SpawnOptions) clone(flags uint64, code, base uintptr) (int, error) {
	args := arch.CloneArgs{Flags: flags | o.Flags | unix.CLONE_CLEAR_SIGHAND, ExitSignal: uint64(o.ExitSignal)}
	if o.ExitSignal == 0 && o.Flags&unix.CLONE_PARENT == 0 {
		args.ExitSignal = uint64(unix.SIGCHLD)
	}
	if o.Cgroup != 0 {
		args.Flags |= unix.CLONE_INTO_CGROUP
		args.Cgroup = uint64(o.Cgroup)
	}
	if len(o.TID) > 0 {
		tids := make([]int32, len(o.TID))
		for i, tid := range o.TID {
			tids[i] = int32(tid)
		}
		var pin runtime.Pinner // args holds the address as a number
		defer pin.Unpin()
		pin.Pin(&tids[0])
		args.SetTID, args.SetTIDSize = uint64(uintptr(unsafe.Pointer(&tids[0]))), uint64(len(o.TID))
	}
	return cloneBlocked(&args, code, base)
}

// cloneBlocked clones with all signals blocked, so that no handler of the Go runtime runs in the child, nor in this
// thread while the child uses its memory.
func cloneBlocked(args *arch.CloneArgs, code, base uintptr) (int, error) {
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid := arch.CloneHere(args, code, base)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	if errno := errnoOf(pid); errno != 0 {
		return 0, fmt.Errorf("clone3: %w", errno)
	}
	return int(pid), nil
}

// takeOver seizes a fresh stub, moves the engine to anonymous memory at the beginning of the hole and unmaps the
// executable.
func takeOver(pid int, o *SpawnOptions) (*Session, error) {
	if err := ptrace.Seize(pid, spawnTracing); err != nil {
		return nil, err
	}
	if _, err := ptrace.Stop(pid); err != nil {
		return nil, err
	}
	th := &Thread{TID: pid}
	if err := ptrace.GetRegs(pid, &th.Regs); err != nil {
		return nil, err
	}
	s := &Session{area: Area{Size: AreaSize(max(o.Slots, 1), o.slotSize())}, restored: true, hole: o.Hole.Start}
	s.leader = &Slot{session: s, thread: th}
	s.instr = o.stub() + stubHeader + uint64(arch.SyscallOffset())
	if err := s.mapArea(); err != nil {
		return nil, err
	}
	s.instr = s.area.Start + uint64(arch.SyscallOffset())
	if err := s.settle(Options{SlotSize: o.SlotSize, Slots: o.Slots}); err != nil {
		return nil, err
	}
	b := NewBuilder("drop the restorer's executable")
	b.Call(unix.SYS_MUNMAP, Imm(o.stub()), Imm(uint64(stubSize))).Must()
	_, err := s.Run(b.Program())
	return s, err
}

func (o *SpawnOptions) slotSize() int {
	if o.SlotSize == 0 {
		return defaultSlotSize
	}
	return o.SlotSize
}
