package collectors

import (
	"fmt"

	"cryo/internal/objid"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Namespaces knows which namespaces there are and gives each a number, counted from 1 as they are met: the tool's own
// come first, so a task that shares all of them has the numbers the inventory has.
type Namespaces struct {
	ids map[namespace]uint32
	own map[string]uint64 // inode of each of the tool's own
	// tables maps the number of each descriptor table to the task that came first with it.
	tables map[uint32]*Task
	// spaces does so for address spaces.
	spaces map[uint32]*Task
}

type namespace struct {
	kind string
	ino  uint64
}

// nsKinds are the links of /proc/PID/ns in the order in which numbers are given; those a kernel lacks are left out.
var nsKinds = [nsCount]struct {
	name string
	// ioctl opens the one of a pidfd, heirs that of the task's children to come where there is a word for it.
	ioctl, heirs uint
	field        func(*criu_core.TaskKobjIdsEntry) **uint32
	// belong is told which one a task is in, by inode and number, and notes what stands in the way; nil: only the tool's own
	// can be dumped.
	belong func(env *Env, t *Task, inode uint64, number uint32) error
}{
	{"pid", pidfdNamespace + 5, pidfdNamespace + 6, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.PidNsId },
		func(env *Env, t *Task, inode uint64, _ uint32) error { return env.PIDNS.belong(env, t, inode) }},
	{"net", pidfdNamespace + 4, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.NetNsId },
		func(env *Env, t *Task, inode uint64, number uint32) error {
			return env.NetNS.belong(env, t, inode, number)
		}},
	{"ipc", pidfdNamespace + 2, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.IpcNsId }, nil},
	{"uts", pidfdNamespace + 10, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.UtsNsId },
		func(env *Env, t *Task, inode uint64, number uint32) error {
			return env.UTSNS.belong(env, t, inode, number)
		}},
	{"time", pidfdNamespace + 7, pidfdNamespace + 8, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.TimeNsId }, nil}, // Linux 5.6
	{"mnt", pidfdNamespace + 3, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.MntNsId }, nil},
	{"user", pidfdNamespace + 9, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.UserNsId }, nil},
	{"cgroup", pidfdNamespace + 1, 0, func(e *criu_core.TaskKobjIdsEntry) **uint32 { return &e.CgroupNsId }, known}, // Linux 4.6
}

// nsCount is how many kinds there are.
const nsCount = 8

// known is for namespaces that are looked at elsewhere: [Cgroups].
func known(*Env, *Task, uint64, uint32) error { return nil }

// NewNamespaces numbers the tool's own namespaces and returns the ids entry the inventory carries for the tool, whose
// other objects are the first of their kind too.
func NewNamespaces(ids *objid.Allocator) (*Namespaces, *criu_core.TaskKobjIdsEntry, error) {
	n := &Namespaces{ids: map[namespace]uint32{}, own: map[string]uint64{}, tables: map[uint32]*Task{}, spaces: map[uint32]*Task{}}
	e := kobj(objid.Kobj{
		VM: ids.Fresh(objid.VM), Files: ids.Fresh(objid.FilesT), FS: ids.Fresh(objid.FS), Sighand: ids.Fresh(objid.Sighand),
	})
	for _, k := range nsKinds {
		var st unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+k.name, &st); err != nil {
			continue // this kernel has none of the kind
		}
		n.own[k.name] = st.Ino
		*k.field(e) = proto.Uint32(n.number(k.name, st.Ino))
	}
	if len(n.own) == 0 {
		return nil, nil, fmt.Errorf("/proc/self/ns shows no namespaces: is /proc mounted?")
	}
	return n, e, nil
}

func (n *Namespaces) number(kind string, ino uint64) uint32 {
	key := namespace{kind, ino}
	if n.ids[key] == 0 {
		n.ids[key] = uint32(len(n.ids) + 1)
	}
	return n.ids[key]
}

func kobj(k objid.Kobj) *criu_core.TaskKobjIdsEntry {
	return &criu_core.TaskKobjIdsEntry{
		VmId: proto.Uint32(k.VM), FilesId: proto.Uint32(k.Files), FsId: proto.Uint32(k.FS), SighandId: proto.Uint32(k.Sighand),
	}
}

// Identify numbers the kernel objects of a task. Call it in task order. Objects that the images cannot keep shared, or
// that are not dumped yet, become obstacles.
func (n *Namespaces) Identify(env *Env, t *Task) error {
	ref := objid.Ref{Pid: t.Pid}
	var k objid.Kobj
	for _, o := range []struct {
		typ objid.Type
		id  *uint32
	}{{objid.VM, &k.VM}, {objid.FilesT, &k.Files}, {objid.FS, &k.FS}, {objid.Sighand, &k.Sighand}} {
		key := objid.Key{}
		if o.typ == objid.Sighand {
			key.Ino = uint64(k.VM) // who shares signal actions shares memory, so most need no comparing
		}
		id, fresh, err := env.IDs.ID(o.typ, key, ref)
		if err != nil {
			return err
		}
		*o.id = id
		switch {
		case o.typ == objid.VM && !fresh:
			t.SharesMemory = n.spaces[id]
			if t.Parent == nil || !t.Parent.Live() || t.Parent.IDs.VM != id {
				env.Obstacles.Add(Obstacle{Pid: t.Pid, What: fmt.Sprintf("shares its memory with task %d (clone with CLONE_VM), which is not its parent", t.SharesMemory.Pid)})
			}
		case o.typ == objid.VM:
			n.spaces[id] = t
		case o.typ == objid.FilesT && !fresh:
			t.SharesFiles = n.tables[id]
		case o.typ == objid.FilesT:
			n.tables[id] = t
		}
	}
	t.IDs = k
	t.Kobj = kobj(k)
	for i, ns := range nsKinds {
		ino := t.namespaces.own[i]
		if ino == 0 {
			continue
		}
		*ns.field(t.Kobj) = proto.Uint32(n.number(ns.name, ino))
		if ns.belong != nil {
			if err := ns.belong(env, t, ino, n.number(ns.name, ino)); err != nil {
				return err
			}
		} else if ino != n.own[ns.name] {
			env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "is in a " + ns.name + " namespace of its own, which cannot be dumped yet"})
		}
		if t.namespaces.nested[i] {
			env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "has made a " + ns.name + " namespace for its children, which the image format cannot hold"})
		}
	}
	return refuseUnshared(env, t)
}

// refuseUnshared notes threads that do not share what the images say all threads of a task share.
func refuseUnshared(env *Env, t *Task) error {
	for _, th := range t.Threads[1:] {
		for _, o := range []struct {
			typ  objid.Type
			what string
		}{{objid.FilesT, "descriptors"}, {objid.FS, "working directory, root and umask"}} {
			same, err := objid.Same(o.typ, objid.Ref{Pid: t.Pid}, objid.Ref{Pid: th.Tid})
			if err != nil {
				return err
			}
			if !same {
				env.Obstacles.Add(Obstacle{Pid: t.Pid, Where: fmt.Sprintf("thread %d", th.Tid),
					What: o.what + " of its own (unshare), which the image format cannot hold"})
			}
		}
	}
	return nil
}

// taskNamespaces are the namespaces of one task.
type taskNamespaces struct {
	own    [nsCount]uint64 // inodes in the order of nsKinds, 0 where the kernel has none of the kind
	nested [nsCount]bool   // its children would get another one than it is in (Linux 4.12 for pids, 5.6 for time)
}

// inode is that of one kind, 0 where the kernel has none of the kind.
func (n *taskNamespaces) inode(kind string) uint64 {
	for i, ns := range nsKinds {
		if ns.name == kind {
			return n.own[i]
		}
	}
	return 0
}

// pidfdNamespace and the number of a kind make the ioctl by which a pidfd opens a namespace (PIDFD_GET_*_NAMESPACE, Linux
// 6.11).
const pidfdNamespace = 0xff00

// readNamespaces finds out which namespaces a task is in.
func readNamespaces(t *Task) error {
	for i, ns := range nsKinds {
		own := t.namespaceInode(ns.ioctl, ns.name)
		t.namespaces.own[i] = own
		if ns.heirs != 0 && own != 0 { // the link of one that nobody is in yet leads nowhere
			t.namespaces.nested[i] = t.namespaceInode(ns.heirs, ns.name+"_for_children") != own
		}
	}
	return nil
}

// namespaceInode is the inode of a namespace of the task, 0 where the kernel has none of the kind. By a pidfd it takes half
// the time that a link in /proc takes, which has to be made first.
func (t *Task) namespaceInode(ioctl uint, name string) uint64 {
	if pidfd, err := t.Pidfd(); err == nil {
		if fd, err := unix.IoctlRetInt(pidfd, ioctl); err == nil {
			defer unix.Close(fd)
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil {
				return st.Ino
			}
		}
	}
	st, err := t.Proc.Fstat("ns/" + name)
	if err != nil {
		return 0
	}
	return st.Ino
}

// ByInode finds the number and the kind of a namespace that a task of the tree, or the tool, is in.
func (n *Namespaces) ByInode(kind string, ino uint64) (uint32, bool) {
	id := n.ids[namespace{kind, ino}]
	return id, id != 0
}
