package collectors

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/nsenter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// UTSNS is the UTS namespace of the tree: that of its root. Where it is not the tool's own its names are part of the dump.
//
// Kernel interfaces: uname(2), setns(2) (Linux 3.0). Image: utsns-N.
type UTSNS struct {
	inode  uint64
	number uint32            // in the images
	names  *utsns.UtsnsEntry // nil: the namespace is the tool's own
}

// belong notes the namespace of a task: the first one's is that of the tree, and others must be the same.
func (n *UTSNS) belong(env *Env, t *Task, inode uint64, number uint32) error {
	if n.inode != 0 {
		if inode != n.inode {
			env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "is in another UTS namespace than the root of the tree, which cannot be dumped yet"})
		}
		return nil
	}
	n.inode, n.number = inode, number
	if inode == env.Namespaces.own["uts"] {
		return nil
	}
	return n.read(t)
}

// read asks for the names from within.
func (n *UTSNS) read(t *Task) error {
	fd, err := t.Proc.Open("ns/uts", unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("UTS namespace of task %d: %w", t.Pid, err)
	}
	defer unix.Close(fd)
	var name unix.Utsname
	if err := nsenter.In(fd, unix.CLONE_NEWUTS, func() error { return unix.Uname(&name) }); err != nil {
		return fmt.Errorf("names of the UTS namespace of task %d: %w", t.Pid, err)
	}
	n.names = &utsns.UtsnsEntry{
		Nodename: proto.String(unix.ByteSliceToString(name.Nodename[:])), Domainname: proto.String(unix.ByteSliceToString(name.Domainname[:])),
	}
	return nil
}

// Write stores the names.
func (n *UTSNS) Write(set image.Creator) error {
	if n.names == nil {
		return nil
	}
	return image.Write(set, image.Utsns, uint64(n.number), n.names)
}
