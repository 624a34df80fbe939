package stages

import (
	"errors"
	"fmt"
	"slices"

	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// restoreThreads clones the threads of every task that has more than one.
func (r *restorer) restoreThreads(s *pipeline.Stage, f *family) (*family, error) {
	live := slices.DeleteFunc(f.alive(), (*member).single)
	if err := r.leaders(f, live, "process state", restorers.TaskEarly); err != nil {
		return nil, err
	}
	err := r.tracer.Do(func() error {
		for _, m := range live {
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
	if err := r.enterThreadGroups(f, live); err != nil {
		return nil, err
	}
	return f, r.fileLevel(f, restorers.Own)
}

const sigIgn = 1 // SIG_IGN

// single says whether the process has one thread. All its state is restored by one program then.
func (m *member) single() bool { return len(m.Threads) == 1 }

// leaders restores the state of some phases on the leaders of some tasks.
func (r *restorer) leaders(f *family, some []*member, name string, phases ...restorers.Phase) error {
	return r.runAll(some, name, func(m *member, b *remote.Builder) error {
		e := f.stateOf(m.Task, m.Threads[0], b)
		for _, p := range phases {
			if p == restorers.TaskEarly {
				forgetChildren(b)
			}
			restorers.EmitState(p, e)
		}
		return nil
	})
}

// forgetChildren throws away what children that have ended here have told: ignoring the signal for a moment does it.
func forgetChildren(b *remote.Builder) {
	ignore := b.Bytes(append([]byte{sigIgn}, make([]byte, 31)...)) // struct sigaction
	b.Call(unix.SYS_RT_SIGACTION, remote.Imm(int(unix.SIGCHLD)), ignore, remote.Imm(0), remote.Imm(8)).Must().Discard()
}

// otherThreads restores the state of some phases on all threads of some tasks but the leaders. Those of one task run at the
// same time, as many as it has room for programs.
func (r *restorer) otherThreads(f *family, some []*member, name string, phases ...restorers.Phase) error {
	return r.tracer.Do(func() error {
		for _, m := range some {
			err := runThreads(m.session, m.threads, func(i int) *remote.Program {
				b := remote.NewBuilder(name)
				e := f.stateOf(m.Task, m.Threads[1+i], b)
				for _, p := range phases {
					restorers.EmitState(p, e)
				}
				return b.Program()
			})
			if err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
		}
		return nil
	})
}

// runThreads runs a program on each of some threads of one task: those of the first run while those of the last are being
// written.
func runThreads(s *remote.Session, threads []*remote.Thread, program func(int) *remote.Program) error {
	const room = restoreSlots - 1 // the leader has one
	var running []*remote.Slot
	var errs []error
	finish := func(n int) {
		for _, slot := range running[:n] {
			if _, err := slot.Finish(); err != nil {
				errs = append(errs, fmt.Errorf("thread %d: %w", slot.Thread().TID, err))
			}
			if err := slot.Leave(); err != nil {
				errs = append(errs, err)
			}
		}
		running = running[n:]
	}
	for i, th := range threads {
		slot, err := s.StartOn(th, program(i))
		if err != nil {
			errs = append(errs, fmt.Errorf("thread %d: %w", th.TID, err))
		} else {
			running = append(running, slot)
		}
		if len(running) == room {
			finish(room / 2)
		}
		if len(errs) > 0 {
			break
		}
	}
	finish(len(running))
	return errors.Join(errs...)
}
