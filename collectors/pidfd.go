package collectors

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Pidfd collects descriptors of processes (pidfd_open(2), Linux 5.3): of those in the tree, running or zombies, and of
// any that have been reaped.
type Pidfd struct{}

// Match takes files of pidfs (Linux 6.9), before that anonymous inodes named pidfd.
func (Pidfd) Match(p *Probe) bool { return p.FSType == unix.PID_FS_MAGIC || p.anonymous("[pidfd]") }

// reaped is the pid that a descriptor has of a process that is gone for good.
const reaped = -1

// Collect makes a pidfd_entry. The inode number tells reaped processes apart.
func (Pidfd) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	pid, err := strconv.Atoi(p.Info.Field("Pid"))
	if err != nil {
		return nil, fmt.Errorf("fdinfo of a pidfd: Pid: %w", err)
	}
	inner := pid
	if all := strings.Fields(p.Info.Field("NSpid")); len(all) > 0 {
		if inner, err = strconv.Atoi(all[len(all)-1]); err != nil {
			return nil, fmt.Errorf("fdinfo of a pidfd: NSpid: %w", err)
		}
	}
	if pid != reaped && !f.env.InTree(pid) {
		what := fmt.Sprintf("a pidfd of process %d, which is not in the tree", pid)
		if pid == 0 {
			what = "a pidfd of a process in another pid namespace"
		}
		if p.Flags&unix.PIDFD_THREAD != 0 {
			what = fmt.Sprintf("a pidfd of thread %d, which leads no process of the tree", pid)
		}
		return nil, p.Obstacle(what, "close it before the dump")
	}
	return &fdinfo.FileEntry{Pidfd: &pidfd.PidfdEntry{
		Id: proto.Uint32(id), Ino: proto.Uint32(uint32(p.Stat.Ino)), Flags: proto.Uint32(p.Flags &^ unix.O_ACCMODE),
		Nspid: proto.Int32(int32(inner)), Fown: p.Owner,
	}}, nil
}
