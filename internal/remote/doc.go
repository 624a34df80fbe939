// Package remote runs programs of system calls inside foreign tasks: on dump they ask a task about itself (the
// parasite), on restore they build a task up (the restorer). A program is plain data made by a Builder; the interpreter
// in package arch executes it in the task. There is no C and no Go runtime in the task, and no stack is used.
//
//	b := remote.NewBuilder("read the link's target")
//	buf := b.Zero(256)
//	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String("/x"), remote.Imm(unix.O_RDONLY)).Must()
//	n := b.Call(unix.SYS_READ, fd, buf, remote.Imm(256))
//	b.Call(unix.SYS_CLOSE, fd).Discard()
//	res, err := session.Run(b.Program())
//	size, err := res.Value(n)      // error names program, op, call, arguments, errno
//	text := res.Bytes(buf)[:size]
//
// # Dump: injection
//
// All of it happens on the thread of the ptrace.Tracer that seized the task (inside Tracer.Do):
//
//	ptrace.Seize, ptrace.Stop            the caller stops every thread of the task
//	th, err := remote.Capture(tid)       registers, xstate, signal mask; decides an rseq critical section
//	s, err := remote.Inject(th, opts)    one mapping made in the task; what FindSyscall and FindEscape found before
//	                                     the freeze, given in the options, saves most of the time
//	res, err := s.Run(prog)              on the leader
//	res, err := s.RunOn(other, prog)     on another captured thread of the same task
//	s.Eject()                            the mapping is gone, the leader has its state back, still stopped
//	ptrace.Detach
//
// Start and Finish are Run in two halves: start a program in each of many tasks, then finish each. To run programs on
// several threads of one task at once give each its slot (Options.Slots, Session.Enter, Slot.Leave). A program that does
// not fit into the buffer is split by itself.
//
// # Restore: spawning
//
// Also inside Tracer.Do:
//
//	s, err := remote.Spawn(remote.SpawnOptions{TID: []int{pid}, Hole: hole})   // a task with nothing but the engine in it
//	res, err := s.Run(prog)                       // unmap stack and vdso, map memory, open files ...
//	children, err := s.CloneAll([]remote.Child{...})   // forked, stopped; each is a Session of its own
//	threads, err := s.CloneThreads([][]int{{tid}, ...}) // stopped; s.RunOn(thread, prog)
//	s.Remove()                                    // the engine is unmapped
//	th.Regs, th.XState, th.SigMask = ...          // for every thread, s.Leader().Thread() first
//	th.Restore(); ptrace.Detach(th.TID, 0)        // or SIGSTOP to leave it stopped
//
// The engine lies in one hole, at the same addresses in a task and all tasks cloned from it: find a hole of HoleSize
// bytes that is free in every address space of the family. Everything spawned or cloned is traced and dies with the
// tracer (PTRACE_O_EXITKILL) until it is detached. Restored tasks run under a mask that blocks every signal but the one
// programs stop with (SIGURG; Session.StopWith chooses another one where SIGURG is going to be pending).
//
// # When the tracer dies
//
// A program ends with a signal the thread sends itself, one that the task neither handles nor waits for, under a mask
// that blocks all others. A tracer sees the stop. If there is none any more the signal is ignored, and the interpreter
// returns through a signal frame that was prepared before the first operation: registers, extended state and signal mask
// are back, and a system call that was interrupted is made again. The mapping of the engine stays behind; Evict removes
// it. The lone system calls that map and unmap the engine have an escape of their own, see Escape; finding it reads the
// task's maps, so do it before the freeze and give it as Options.Escape. Windows that remain, in which the death of the
// tracer kills the task:
//
//   - where the task has no code to escape by, or its main stack is in use to its lowest page, while the engine is mapped
//     (Inject) and unmapped (Eject), some microseconds each;
//   - where the task handles or blocks every signal that does nothing by default (SIGURG, SIGWINCH, SIGCHLD, and SIGCONT
//     unless the task is stopped): programs stop by a breakpoint then, and Session.CrashSafe says so;
//   - where seccomp is in force in the task, while a program runs: seccomp is suspended by the tracer's options, comes
//     back with the tracer's death and judges the rest of the program. Between programs nothing happens but a return from
//     a signal, which seccomp's strict mode and all but the oddest filters allow;
//   - where the thread has syscall user dispatch: it stays off, so a later system call is not dispatched;
//   - where the thread has a user shadow stack: its signal frames need a token there.
//
// Two things are not as they were when a task had to help itself: a sleep only the kernel could have resumed starts again
// or, where it reports the rest, returns EINTR (arch.Regs.FixRestart), and on arm64 what of the SVE registers is longer
// than 128 bits is gone.
//
// Without the tracer's death none of this matters: registers are put back by SETREGS with the result of the interrupted
// call as it was, so the kernel restarts it itself, and a restart block survives because nothing here sleeps.
//
// A task that is in a group-stop runs programs all the same and is stopped again when it is detached.
package remote
