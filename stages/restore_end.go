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
	helpers := map[*member][]int{} // by parent
	var parents []*member
	err := r.tracer.Do(func() error {
		for _, m := range f.members {
			if !m.Helper() {
				continue
			}
			if err := r.die(m, 0); err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
			p := f.byNode[m.Parent]
			if helpers[p] == nil {
				parents = append(parents, p)
			}
			helpers[p] = append(helpers[p], m.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = r.runAll(parents, "reap helpers", func(m *member, b *remote.Builder) error {
		for _, pid := range helpers[m] {
			b.Call(unix.SYS_WAIT4, remote.Imm(pid), remote.Imm(0), remote.Imm(unix.WALL), remote.Imm(0)).Must().Discard()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.tracer.Do(func() error {
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
			r.made = slices.DeleteFunc(r.made, func(pid int) bool { return pid == m.PID() })
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
