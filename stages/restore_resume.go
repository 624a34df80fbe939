package stages

import (
	"context"
	"fmt"
	"os"
	"slices"

	"cryo/internal/actions"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
	"cryo/internal/spread"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// resume lets the tree go, and tells those who want to know.
func (r *restorer) resume(s *pipeline.Stage, f *family) error {
	if err := r.scripts.Run(s.Context(), actions.PreResume); err != nil {
		return err
	}
	if err := r.writePidFile(s); err != nil {
		return err
	}
	links, err := r.reconnection(f)
	if err != nil {
		return err
	}
	if err := f.cgroups.Freeze(); err != nil {
		return err
	}
	if err := r.release(s, f, links); err != nil {
		return err
	}
	// From here on the tree lives by itself.
	if err := r.made.letGo(s.Context()); err != nil {
		return err
	}
	if err := s.Undo().Commit(); err != nil {
		return err
	}
	r.running = true
	if err := links.do(); err != nil {
		return err
	}
	for _, forget := range r.finished {
		forget()
	}
	if err := r.detach(f); err != nil {
		return err
	}
	if r.lazy != nil {
		if err := r.lazy.Finish(); err != nil {
			return err
		}
	}
	for _, name := range f.paths.Links() {
		if err := os.Remove(name); err != nil {
			s.Logger().Warn("a link the dump made stays", "name", name, "err", err)
		}
	}
	return r.scripts.Run(s.Context(), actions.PostResume)
}

// release makes the tree outlive the tool, all of it or nothing. A task that is no more killed with its tracer goes on by
// itself when the tracer dies, so what is left to do is to stop killing. One task does that in a moment: as long as any
// of its threads is to be killed, all of them are. Of several, some might have been released already when the tool dies;
// the guardian ends those, until the commit that follows; after it, it gives them their connections back.
func (r *restorer) release(s *pipeline.Stage, f *family, links *reconnection) error {
	live := f.alive()
	if len(live) > 1 || links != nil {
		if err := r.insure(s, live, links.records()); err != nil {
			return err
		}
	}
	if err := links.prepare(s.Undo()); err != nil {
		return err
	}
	return r.tracer.Do(func() error {
		for _, m := range live {
			if sig := r.stopSignal(m); sig != 0 { // it stops before its next instruction
				if err := unix.Kill(m.PID(), sig); err != nil {
					return fmt.Errorf("%s: %w", m.Node, err)
				}
			}
		}
		for _, m := range live {
			for _, th := range m.allThreads() {
				if err := ptrace.SetOptions(th.TID, 0); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// insure starts a guardian that kills the tasks if the tool dies before it commits, and does what finish says if it dies
// after that.
func (r *restorer) insure(s *pipeline.Stage, live []*member, finish []pipeline.UndoRecord) error {
	if err := r.startGuardian(); err != nil || r.guard == nil {
		return err
	}
	for _, record := range finish {
		forget, err := r.guard.Finish(record)
		if err != nil {
			return err
		}
		r.finished = append(r.finished, forget)
	}
	ids := make([]taskID, len(live))
	err := spread.Range(len(live), identifyChunk, func(i int) (err error) {
		ids[i], err = identify(live[i].PID())
		return err
	})
	if err != nil {
		return err
	}
	var records []pipeline.UndoRecord
	for chunk := range slices.Chunk(ids, pidsPerRecord) {
		records = append(records, killTasks{Tasks: chunk})
	}
	_, err = s.Undo().Push("kill the tasks that are released", 0, func(context.Context) error { return nil }, records...)
	return err
}

// startGuardian starts the guardian, unless there is one already.
func (r *restorer) startGuardian() (err error) {
	if r.guard == nil {
		launch := launchGuardian()
		r.g.SetJournal(launch)
		r.guard, err = launch.wait()
	}
	return err
}

// identify finds out by what a task is told from a later one with its pid.
func identify(pid int) (taskID, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return taskID{}, err
	}
	defer dir.Close()
	st, err := dir.Stat()
	if err != nil {
		return taskID{}, err
	}
	return taskID{Pid: pid, Start: st.StartTime}, nil
}

// detach lets all threads run. An error with one is no reason to keep the others.
func (r *restorer) detach(f *family) error {
	return r.tracer.Do(func() (first error) {
		for _, m := range f.alive() {
			for _, th := range m.allThreads() {
				if err := ptrace.Detach(th.TID, 0); err != nil && first == nil {
					first = err
				}
			}
		}
		return first
	})
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

// writePidFile tells where the root is, as long as it is there.
func (r *restorer) writePidFile(s *pipeline.Stage) error {
	if r.o.PidFile == "" {
		return nil
	}
	if err := WritePidFile(r.o.PidFile, r.root); err != nil {
		return err
	}
	_, err := s.Undo().Push("remove the pid file", 0, func(context.Context) error { return os.Remove(r.o.PidFile) })
	return err
}
