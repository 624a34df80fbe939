package collectors

import (
	"errors"
	"fmt"
	"os"

	"cryo/internal/image"
	"cryo/internal/vma"

	ipc_desc "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-desc"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// sysvSegments are the SysV segments that tasks have attached (shmat(2)), where tree and tool share an IPC namespace.
// Images: ipcns-shm-NS.img with one entry a segment; the contents are in pagemap-shmem-ID.img, where ID is the segment's.
type sysvSegments struct {
	ns      uint32
	entries []*ipc_shm.IpcShmEntry
	known   map[uint64]bool
}

// attached enters the segment behind a mapping.
func (s *SharedMemory) attached(t *Task, mp *vma.Mapping) error {
	theirs, err := t.Proc.Readlink("ns/ipc")
	if err != nil {
		return err
	}
	if own, err := os.Readlink("/proc/self/ns/ipc"); err != nil {
		return err
	} else if own != theirs {
		return Obstacle{Pid: t.Pid, Where: "mapping " + mp.Link(), What: "SysV shared memory of an IPC namespace of its own, which cannot be dumped yet"}
	}
	if s.sysv.known[mp.Inode] {
		return nil
	}
	var d unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(int(mp.Inode), unix.IPC_STAT, &d); err != nil {
		return fmt.Errorf("shmctl of SysV segment %d: %w", mp.Inode, err)
	}
	e := &ipc_shm.IpcShmEntry{
		Desc: &ipc_desc.IpcDescEntry{
			Key: proto.Uint32(uint32(d.Perm.Key)), Uid: &d.Perm.Uid, Gid: &d.Perm.Gid, Cuid: &d.Perm.Cuid, Cgid: &d.Perm.Cgid,
			Mode: proto.Uint32(uint32(d.Perm.Mode)), Id: proto.Uint32(uint32(mp.Inode)),
		},
		Size: proto.Uint64(uint64(d.Segsz)), InPagemaps: proto.Bool(true),
	}
	if size := mp.HugePage(); size != 0 {
		e.HugetlbFlag = proto.Uint32(shmHugetlb | vma.MapHuge(size))
	}
	s.sysv.ns = t.Kobj.GetIpcNsId()
	s.sysv.known[mp.Inode] = true
	s.sysv.entries = append(s.sysv.entries, e)
	s.object(deviceInode{mp.Dev, mp.Inode}, t, mapLink(mp)).size = uint64(d.Segsz)
	return nil
}

const shmHugetlb = 0o4000 // SHM_HUGETLB

func (s *sysvSegments) write(set image.Creator) error {
	if len(s.entries) == 0 {
		return nil
	}
	return image.Write(set, image.IPCShm, uint64(s.ns), s.entries...)
}

// noteObstacle adds an obstacle that came as an error; other errors pass.
func noteObstacle(env *Env, err error) error {
	var o Obstacle
	if errors.As(err, &o) {
		env.Obstacles.Add(o)
		return nil
	}
	return err
}
