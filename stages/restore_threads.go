package stages

import (
	"fmt"

	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// restoreThreads clones the threads of every task and gives all of them what needs no privilege.
func (r *restorer) restoreThreads(s *pipeline.Stage, f *family) (*family, error) {
	live := f.alive()
	err := r.runAll(live, "process state", func(m *member, b *remote.Builder) error {
		// Children that have ended here told us so; ignoring the signal for a moment throws that away.
		ignore := b.Bytes(append([]byte{sigIgn}, make([]byte, 31)...)) // struct sigaction
		b.Call(unix.SYS_RT_SIGACTION, remote.Imm(int(unix.SIGCHLD)), ignore, remote.Imm(0), remote.Imm(8)).Must().Discard()
		restorers.EmitState(restorers.TaskEarly, f.stateOf(m.Task, m.Threads[0], b))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = r.tracer.Do(func() error {
		for _, m := range live {
			if len(m.Threads) == 1 {
				continue
			}
			ids := make([][]int, 0, len(m.Threads)-1)
			for _, th := range m.Threads[1:] {
				ids = append(ids, []int{th.TID})
			}
			var err error
			if m.threads, err = m.session.CloneThreads(ids); err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := r.eachThread(f, live, "thread state", restorers.ThreadEarly); err != nil {
		return nil, err
	}
	return f, r.fileLevel(f, restorers.Own)
}

// eachThread restores the state of one phase on every thread of some tasks.
func (r *restorer) eachThread(f *family, live []*member, name string, phase restorers.Phase) error {
	err := r.runAll(live, name, func(m *member, b *remote.Builder) error {
		restorers.EmitState(phase, f.stateOf(m.Task, m.Threads[0], b))
		return nil
	})
	if err != nil {
		return err
	}
	return r.tracer.Do(func() error {
		for _, m := range live {
			for i, th := range m.threads {
				b := remote.NewBuilder(name)
				restorers.EmitState(phase, f.stateOf(m.Task, m.Threads[i+1], b))
				if _, err := m.session.RunOn(th, b.Program()); err != nil {
					return fmt.Errorf("%s, thread %d: %w", m.Node, m.Threads[i+1].TID, err)
				}
			}
		}
		return nil
	})
}

const sigIgn = 1 // SIG_IGN
