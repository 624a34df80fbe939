package stages

import (
	"fmt"
	"os"

	"cryo/arch"
	"cryo/internal/actions"
	"cryo/internal/options"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// jump does what must come last: it gives privileges away, takes the interpreter out of every task and sets registers
// and signal masks. The tasks stay stopped.
func (r *restorer) jump(s *pipeline.Stage, f *family) (*family, error) {
	if err := r.scripts.Run(s.Context(), actions.PostRestore); err != nil {
		return nil, err
	}
	if err := r.leaders(f, "late process state", restorers.ThreadEarly, restorers.TaskLate); err != nil {
		return nil, err
	}
	live := f.alive()
	if err := r.suspendSeccomp(live); err != nil {
		return nil, err
	}
	if err := r.otherThreads(f, "thread state", restorers.ThreadEarly, restorers.ThreadLast); err != nil {
		return nil, err
	}
	if err := r.leaders(f, "last process state", restorers.ThreadLast, restorers.TaskLast); err != nil {
		return nil, err
	}
	return f, r.tracer.Do(func() error {
		for _, m := range live {
			if err := m.session.Remove(); err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
			for i, th := range m.allThreads() {
				if err := setRegisters(th, m.Threads[i]); err != nil {
					return fmt.Errorf("%s, thread %d: %w", m.Node, m.Threads[i].TID, err)
				}
			}
		}
		return nil
	})
}

// suspendSeccomp keeps the filters that are about to be installed from judging the calls that still come.
func (r *restorer) suspendSeccomp(live []*member) error {
	const options = ptrace.OptExitKill | ptrace.OptSysGood | ptrace.OptSuspendSeccomp
	return r.tracer.Do(func() error {
		for _, m := range live {
			for i, th := range m.allThreads() {
				if m.Threads[i].Core.GetThreadCore().GetSeccompMode() == 0 && m.Core.GetTc().GetOldSeccompMode() == 0 {
					continue
				}
				if err := ptrace.SetOptions(th.TID, options); err != nil {
					return &remote.SeccompError{TID: m.Threads[i].TID, Err: err}
				}
			}
		}
		return nil
	})
}

// allThreads lists the threads of a member in the order of the set, the leader first.
func (m *member) allThreads() []*remote.Thread {
	return append([]*remote.Thread{m.session.Leader().Thread()}, m.threads...)
}

// setRegisters gives a stopped thread its processor state and signal mask.
func setRegisters(th *remote.Thread, want *restorers.Thread) error {
	state, err := arch.FromCore(want.Core)
	if err != nil {
		return err
	}
	th.State, th.SigMask = *state, restorers.MaskOf(want.Core)
	return th.Restore()
}

// resume lets the tree go, and tells those who want to know.
func (r *restorer) resume(s *pipeline.Stage, f *family) error {
	if err := r.scripts.Run(s.Context(), actions.PreResume); err != nil {
		return err
	}
	if err := r.writePidFile(); err != nil {
		return err
	}
	// From here on the tree lives by itself.
	if err := s.Undo().Commit(); err != nil {
		return err
	}
	err := r.tracer.Do(func() error {
		for _, m := range f.alive() {
			// It stops before its next instruction.
			if sig := r.stopSignal(m); sig != 0 {
				if err := unix.Kill(m.PID(), sig); err != nil {
					return err
				}
			}
			for _, th := range m.allThreads() {
				if err := ptrace.Detach(th.TID, 0); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range f.paths.Links() {
		if err := os.Remove(name); err != nil {
			s.Logger().Warn("a link the dump made stays", "name", name, "err", err)
		}
	}
	return r.scripts.Run(s.Context(), actions.PostResume)
}

// stopSignal is what a task is to be stopped with: as it was in the set, or as the user asked. 0: it runs.
func (r *restorer) stopSignal(m *member) unix.Signal {
	tc := m.Core.GetTc()
	switch {
	case tc.GetTaskState() == restorers.StateStopped && tc.GetStopSigno() != 0:
		return unix.Signal(tc.GetStopSigno())
	case tc.GetTaskState() == restorers.StateStopped || r.o.Final == options.LeaveStopped:
		return unix.SIGSTOP
	}
	return 0
}

func (r *restorer) writePidFile() error {
	if r.o.PidFile == "" {
		return nil
	}
	return WritePidFile(r.o.PidFile, r.root)
}
