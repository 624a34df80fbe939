package collectors

import (
	"errors"

	"cryo/internal/procfs"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func readRlimits(t *Task) (err error) {
	t.Core.Tc.Rlimits, err = rlimits(t)
	return err
}

// rlimits reads the resource limits of a task: by prlimit(2) (Linux 2.6.36), and from /proc/PID/limits where that is
// denied because the task is another user's and CAP_SYS_RESOURCE is missing.
func rlimits(t *Task) (*criu_core.TaskRlimitsEntry, error) {
	var limits [procfs.NumLimits]procfs.Limit
	for i := range limits {
		var lim unix.Rlimit
		err := unix.Prlimit(t.Pid, i, nil, &lim)
		if errors.Is(err, unix.EPERM) {
			if limits, err = t.Proc.Limits(); err != nil {
				return nil, err
			}
			break
		}
		if err != nil {
			return nil, err
		}
		limits[i] = procfs.Limit{Cur: lim.Cur, Max: lim.Max}
	}
	e := &criu_core.TaskRlimitsEntry{}
	for _, lim := range limits {
		e.Rlimits = append(e.Rlimits, &rlimit.RlimitEntry{Cur: proto.Uint64(lim.Cur), Max: proto.Uint64(lim.Max)})
	}
	return e, nil
}
