package stages

import (
	"context"
	"strconv"

	"cryo/internal/remote"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// enterPIDNS prepares a pid namespace whose init has just been made.
func (r *restorer) enterPIDNS(s *pipeline.Stage, p *restorePlan, root *member) error {
	if !p.pids.New {
		return nil
	}
	err := r.tracer.Do(func() (err error) {
		if _, err = root.session.Run(giveOutAfter(p.set.MaxID())); err != nil {
			return err
		}
		r.envoy, err = remote.SendEnvoy(root.PID(), p.envoy)
		return err
	})
	if err != nil {
		return err
	}
	r.made.add(r.envoy.PID)
	_, err = s.Undo().Push("recall the envoy", 0, func(context.Context) error { return r.recall() })
	return err
}

// giveOutAfter makes the kernel give out ids behind those of the set, as it did when the set was made: threads of its own
// must take none of them, and ids of tasks that have ended are not used again soon. It is no loss where that is not allowed.
func giveOutAfter(last int) *remote.Program {
	b := remote.NewBuilder("give out ids behind those of the set")
	text := []byte(strconv.Itoa(last))
	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(lastPID), remote.Imm(unix.O_WRONLY|unix.O_CLOEXEC), remote.Imm(0))
	b.Call(unix.SYS_WRITE, fd, b.Bytes(text), remote.Imm(len(text))).Discard()
	b.Call(unix.SYS_CLOSE, fd).Discard()
	return b.Program()
}

// recall ends the process that has the tool's descriptors in the pid namespace of the tree, when they are in the tasks.
func (r *restorer) recall() error {
	if r.envoy == nil {
		return nil
	}
	envoy := r.envoy
	r.envoy = nil
	r.made.remove(envoy.PID)
	return r.tracer.Do(envoy.Recall)
}
