package remote

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

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
