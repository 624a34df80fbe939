package stages

import (
	"errors"
	"fmt"
	"slices"

	"cryo/internal/ptrace"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// endHelpers lets the helpers go, reaped by their parents, and then those tasks that are dead in the set, which stay
// zombies. Sessions and groups are made by then, and files of /proc opened.
func (r *restorer) endHelpers(f *family) error {
	adopters := f.adopters()
	if err := r.runAll(adopters, "adopt orphans", subreaper(1)); err != nil {
		return err
	}
	err := r.tracer.Do(func() error {
		for _, m := range slices.Backward(f.members) { // the helpers of helpers first
			if m.Helper() {
				if err := r.endHelper(m, f.byNode[m.Parent]); err != nil {
					return fmt.Errorf("%s: %w", m.Node, err)
				}
			}
		}
		for _, m := range f.members {
			if m.Helper() || !m.Dead() {
				continue
			}
			if err := r.die(m, unix.WaitStatus(m.Core.GetTc().GetExitCode())); err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.runAll(adopters, "adopt no more", subreaper(0)) // whose image says otherwise becomes it again
}

// adopters lists the parents of tasks that are to fall to them.
func (f *family) adopters() []*member {
	var some []*member
	for _, m := range f.members {
		if m.Orphan && !slices.Contains(some, f.byNode[m.Parent]) {
			some = append(some, f.byNode[m.Parent])
		}
	}
	return some
}

// subreaper makes a task one to whom the orphans among its descendants fall, or no more.
func subreaper(on int) func(*member, *remote.Builder) error {
	return func(_ *member, b *remote.Builder) error {
		b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_CHILD_SUBREAPER), remote.Imm(on), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
		return nil
	}
}

// endHelper lets a helper go and its parent collect it. It runs on the tracer's thread.
func (r *restorer) endHelper(m, parent *member) error {
	if err := r.die(m, 0); err != nil {
		return err
	}
	b := remote.NewBuilder("collect a helper")
	b.Call(unix.SYS_WAIT4, remote.Imm(m.ID), remote.Imm(0), remote.Imm(unix.WALL), remote.Imm(0)).Must().Discard()
	_, err := parent.session.Run(b.Program())
	return err
}

// die ends a member with a wait status. Its parent gets a zombie. It runs on the tracer's thread.
func (r *restorer) die(m *member, ws unix.WaitStatus) error {
	b := remote.NewBuilder("die")
	if ws.Signaled() {
		// No core dump, whatever the signal.
		b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_DUMPABLE), remote.Imm(0), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Discard()
		mask := b.Bytes(make([]byte, 8))
		b.Call(unix.SYS_RT_SIGPROCMASK, remote.Imm(unix.SIG_SETMASK), mask, remote.Imm(0), remote.Imm(8)).Discard()
		b.Call(unix.SYS_KILL, remote.Imm(m.ID), remote.Imm(int(ws.Signal()))).Discard()
	} else {
		b.Call(unix.SYS_EXIT_GROUP, remote.Imm(ws.ExitStatus())).Discard()
	}
	if err := m.session.Start(b.Program()); err != nil {
		return err
	}
	for {
		st, err := ptrace.Wait(m.PID())
		if err != nil {
			return err
		}
		if st.Gone() {
			r.made.remove(m.PID())
			if st.WaitStatus&^coreFlag != ws&^coreFlag {
				return fmt.Errorf("ended with status %#x in place of %#x", int(st.WaitStatus), int(ws))
			}
			return nil
		}
		if err := ptrace.Cont(m.PID(), st.StopSignal()); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

// coreFlag says in a wait status that a core was dumped, which here it is not.
const coreFlag = 0x80
