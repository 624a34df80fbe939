package stages

import (
	"fmt"

	"cryo/internal/actions"
	"cryo/internal/ptrace"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"
)

// jump does what must come last: it gives privileges away, takes the interpreter out of every task and sets registers
// and signal masks. The tasks stay stopped.
func (r *restorer) jump(s *pipeline.Stage, f *family) (*family, error) {
	if err := f.cgroups.Properties(); err != nil {
		return nil, err
	}
	if err := r.scripts.Run(s.Context(), actions.PostRestore); err != nil {
		return nil, err
	}
	live := f.alive()
	if err := r.suspendSeccomp(live); err != nil {
		return nil, err
	}
	if err := r.lateState(f, live); err != nil {
		return nil, err
	}
	if f.files.Late() {
		if err := r.lateFiles(s, f, live); err != nil {
			return nil, err
		}
	}
	if err := r.recall(); err != nil {
		return nil, err
	}
	return f, r.tracer.Do(func() error {
		sessions := make([]*remote.Session, len(live))
		for i, m := range live {
			sessions[i] = m.session
		}
		for i, err := range remote.RemoveAll(sessions) {
			if err != nil {
				return fmt.Errorf("%s: %w", live[i].Node, err)
			}
		}
		for _, m := range live {
			if l := f.layouts[m.Node]; l != nil {
				for _, patch := range l.Patches {
					if err := ptrace.PokeMemory(m.PID(), patch.Offset, patch.Bytes); err != nil {
						return fmt.Errorf("%s: lead the old vdso into the new one: %w", m.Node, err)
					}
				}
			}
			for i, th := range m.allThreads() {
				if err := setRegisters(th, m.Threads[i]); err != nil {
					return fmt.Errorf("%s, thread %d: %w", m.Node, m.Threads[i].TID, err)
				}
			}
		}
		return f.files.WatchMemory()
	})
}

// lateState restores what is left of the state of all threads. What takes privileges away from one thread leaves those of
// the others alone, but what is the whole process's waits for the last of them.
func (r *restorer) lateState(f *family, live []*member) error {
	var one, several []*member
	for _, m := range live {
		if m.single() {
			one = append(one, m)
		} else {
			several = append(several, m)
		}
	}
	err := r.leaders(f, one, "state", restorers.TaskEarly, restorers.ThreadEarly, restorers.TaskLate, restorers.ThreadLast, restorers.TaskLast)
	if err != nil {
		return err
	}
	if err := r.leaders(f, several, "late process state", restorers.ThreadEarly, restorers.TaskLate); err != nil {
		return err
	}
	if err := r.otherThreads(f, several, "thread state", restorers.ThreadEarly, restorers.ThreadLast); err != nil {
		return err
	}
	return r.leaders(f, several, "last process state", restorers.ThreadLast, restorers.TaskLast)
}

// lateFiles makes those descriptors that take over the credentials of their task, and maps what they have.
func (r *restorer) lateFiles(s *pipeline.Stage, f *family, live []*member) error {
	if err := r.fileLevels(s, f, restorers.Late, restorers.LateWatch); err != nil {
		return err
	}
	return r.runAll(live, "late rings", func(m *member, b *remote.Builder) error {
		if sharesMemory(m.Node) {
			return nil
		}
		return f.files.EmitRings(restorers.Late, b, m.Node, f.layouts[m.Node], m.PID())
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
	th.State, th.SigMask = *want.State, restorers.MaskOf(want.Core)
	return th.Restore()
}
