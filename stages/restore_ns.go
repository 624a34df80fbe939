package stages

import (
	"context"
	"strconv"

	"cryo/internal/remote"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// cloneFlags are the namespaces the root is born in.
func (p *restorePlan) cloneFlags() uint64 { return p.pids.CloneFlags() | p.uts.CloneFlags() }

// furnish puts into new namespaces of the root, which has just been made, what has to be there before anybody else is.
func (r *restorer) furnish(s *pipeline.Stage, p *restorePlan, root *member) error {
	b := remote.NewBuilder("furnish namespaces")
	if p.uts.CloneFlags() != 0 {
		p.uts.Emit(b)
	}
	if p.pids.New {
		giveOutAfter(b, p.set.MaxID())
	}
	if b.Len() == 0 {
		return nil
	}
	err := r.tracer.Do(func() (err error) {
		if _, err = root.session.Run(b.Program()); err == nil && p.pids.New {
			r.envoy, err = remote.SendEnvoy(root.PID(), p.envoy)
		}
		return err
	})
	if err != nil || r.envoy == nil {
		return err
	}
	r.made.add(r.envoy.PID)
	_, err = s.Undo().Push("recall the envoy", 0, func(context.Context) error { return r.recall() })
	return err
}

// giveOutAfter makes the kernel give out ids behind those of the set, as it did when the set was made: threads of its own
// must take none of them, and ids of tasks that have ended are not used again soon. It is no loss where that is not allowed.
func giveOutAfter(b *remote.Builder, last int) {
	text := []byte(strconv.Itoa(last))
	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(lastPID), remote.Imm(unix.O_WRONLY|unix.O_CLOEXEC), remote.Imm(0))
	b.Call(unix.SYS_WRITE, fd, b.Bytes(text), remote.Imm(len(text))).Discard()
	b.Call(unix.SYS_CLOSE, fd).Discard()
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
