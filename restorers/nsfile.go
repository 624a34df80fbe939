package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// NsFile restores open namespaces: through /proc/PID/ns of a task that is in the namespace.
type NsFile struct{}

// nsKinds are the kinds of namespaces, by their CLONE_NEW* flag: the name in /proc, and what a task's entry says of it.
var nsKinds = map[uint32]struct {
	name string
	id   func(*criu_core.TaskKobjIdsEntry) uint32
}{
	unix.CLONE_NEWPID:    {"pid", (*criu_core.TaskKobjIdsEntry).GetPidNsId},
	unix.CLONE_NEWNET:    {"net", (*criu_core.TaskKobjIdsEntry).GetNetNsId},
	unix.CLONE_NEWIPC:    {"ipc", (*criu_core.TaskKobjIdsEntry).GetIpcNsId},
	unix.CLONE_NEWUTS:    {"uts", (*criu_core.TaskKobjIdsEntry).GetUtsNsId},
	unix.CLONE_NEWNS:     {"mnt", (*criu_core.TaskKobjIdsEntry).GetMntNsId},
	unix.CLONE_NEWUSER:   {"user", (*criu_core.TaskKobjIdsEntry).GetUserNsId},
	unix.CLONE_NEWTIME:   {"time", (*criu_core.TaskKobjIdsEntry).GetTimeNsId},
	unix.CLONE_NEWCGROUP: {"cgroup", (*criu_core.TaskKobjIdsEntry).GetCgroupNsId},
}

type nsFile struct {
	id, flags uint32
	kind      string
	of        *Node // a task that is in it
}

// Plan finds a task in the namespace.
func (NsFile) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := e.GetNsf()
	kind, known := nsKinds[f.GetNsCflag()]
	if f == nil || !known {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: ns_cflag %#x is no kind of namespace", e.GetId(), f.GetNsCflag())
	}
	for _, t := range p.Set.Tasks {
		if !t.Dead() && kind.id(t.IDs) == f.GetNsId() {
			return &nsFile{e.GetId(), f.GetFlags(), kind.name, p.Tree.ByPID[t.PID]}, nil
		}
	}
	return nil, fmt.Errorf("the %s namespace %d, which no task of the set is in", kind.name, f.GetNsId())
}

// Needs is nothing.
func (f *nsFile) Needs() []uint32 { return nil }

func (f *nsFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv == Open {
		cloexec := s.Cloexec(f.id)
		s.Made(b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), s.path(fmt.Sprintf("/proc/%d/ns/%s", f.of.Host, f.kind)), remote.Imm(openFlags(f.flags)&^unix.O_NOFOLLOW|cloexec), remote.Imm(0)), f.id, cloexec)
	}
	return nil
}
