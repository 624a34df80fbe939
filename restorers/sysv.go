package restorers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/vma"

	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// SysVs are the SysV segments that tasks of the set have attached. A segment that lives on outside of the tree is attached
// again as it is now; one that has gone is made anew, with its id (/proc/sys/kernel/shm_next_id, Linux 3.8), key, owner and
// contents.
type SysVs struct {
	set      *Set
	segments map[uint64]*sysvSegment
}

type sysvSegment struct {
	*ipc_shm.IpcShmEntry
	made bool
}

// Bits of shmget, shmat and of a segment's mode.
const (
	shmDest   = 0o1000 // goes with the last who has it attached
	shmRdonly = 0o10000
	shmExec   = 0o100000
	permBits  = 0o777
)

// maxSegment bounds a segment: more than any address space holds.
const maxSegment = TaskSize

// NewSysVs reads the segments that the layouts name.
func NewSysVs(s *Set, layouts map[*Node]*Layout) (*SysVs, error) {
	v := &SysVs{set: s, segments: map[uint64]*sysvSegment{}}
	read := false
	for n, l := range layouts {
		for _, a := range l.Areas {
			if !a.Is(vma.StatusSysV) {
				continue
			}
			if !read {
				read = true
				if err := v.read(); err != nil {
					return nil, err
				}
			}
			if err := v.check(a); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", n, a, err)
			}
		}
	}
	return v, nil
}

func (v *SysVs) read() error {
	ns := uint64(v.set.Inventory.GetRootIds().GetIpcNsId())
	all, err := image.ReadOptional(v.set.Source, image.IPCShm, ns)
	if err != nil {
		return err
	}
	for i, e := range all {
		if e.GetSize() == 0 || e.GetSize() > maxSegment {
			return image.Errorf(image.IPCShm.File(ns), i, "a segment of %d bytes cannot be", e.GetSize())
		}
		v.segments[uint64(e.GetDesc().GetId())] = &sysvSegment{IpcShmEntry: e}
	}
	return nil
}

// check refuses mappings that shmat does not make.
func (v *SysVs) check(a *Area) error {
	s := v.segments[a.Object]
	switch {
	case s == nil:
		return fmt.Errorf("SysV segment %d is not in the set", a.Object)
	case a.Offset >= s.mapped() || a.Len() > s.mapped()-a.Offset:
		return fmt.Errorf("%d bytes from %d on are more than SysV segment %d has", a.Len(), a.Offset, a.Object)
	}
	a.Rest = s.mapped() - a.Offset - a.Len()
	return nil
}

// mapped is how long an attachment is: whole pages.
func (s *sysvSegment) mapped() uint64 {
	page := uint64(image.PageSize)
	if shift := s.GetHugetlbFlag() >> unix.MAP_HUGE_SHIFT & unix.MAP_HUGE_MASK; shift != 0 {
		page = 1 << min(shift, 40)
	}
	return (s.GetSize() + page - 1) &^ (page - 1)
}

// Prepare makes the segments that are not there. undo is called before one is made, with its id and how to remove it.
func (v *SysVs) Prepare(ctx context.Context, undo func(id int, remove func() error) error) error {
	for id, s := range v.segments {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.prepare(v.set.Source, int(id), undo); err != nil {
			return fmt.Errorf("SysV segment %d: %w", id, err)
		}
	}
	return nil
}

func (s *sysvSegment) prepare(src image.Source, id int, undo func(int, func() error) error) error {
	var d unix.SysvShmDesc
	_, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d)
	if err == nil {
		if uint32(d.Perm.Key) == s.GetDesc().GetKey() && uint64(d.Segsz) == s.GetSize() && d.Perm.Cuid == s.GetDesc().GetCuid() {
			return nil
		}
		return errors.New("there is another with this id: remove it (ipcrm -m)")
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
		return err
	}
	if err := undo(id, func() error { return s.remove(id) }); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/shm_next_id", strconv.AppendInt(nil, int64(id), 10), 0); err != nil {
		return fmt.Errorf("choose its id: %w", err)
	}
	flags := unix.IPC_CREAT | unix.IPC_EXCL | int(s.GetDesc().GetMode()&permBits) | int(s.GetHugetlbFlag())
	got, err := unix.SysvShmGet(int(int32(s.GetDesc().GetKey())), int(s.GetSize()), flags)
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	if got != id {
		unix.SysvShmCtl(got, unix.IPC_RMID, nil)
		return fmt.Errorf("the kernel gave the new one id %d", got)
	}
	s.made = true
	if err := s.fill(src, id); err != nil {
		return err
	}
	d.Perm.Uid, d.Perm.Gid, d.Perm.Mode = s.GetDesc().GetUid(), s.GetDesc().GetGid(), s.GetDesc().GetMode()&permBits
	_, err = unix.SysvShmCtl(id, unix.IPC_SET, &d)
	return err
}

func (s *sysvSegment) remove(id int) error {
	if !s.made {
		return nil
	}
	return RemoveSysV(id, os.Getpid())
}

// RemoveSysV removes a segment that a process has made. One that has gone, or is another's, is no error.
func RemoveSysV(id, creator int) error {
	var d unix.SysvShmDesc
	_, err := unix.SysvShmCtl(id, unix.IPC_STAT, &d)
	if err == nil && int(d.Cpid) == creator {
		_, err = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
		return nil
	}
	return err
}

// fill writes the contents through the file behind an attachment of the tool's own.
func (s *sysvSegment) fill(src image.Source, id int) error {
	mem, err := unix.SysvShmAttach(id, 0, 0)
	if err != nil {
		return err
	}
	defer unix.SysvShmDetach(mem)
	start := uintptr(unsafe.Pointer(&mem[0]))
	link := fmt.Sprintf("/proc/self/map_files/%x-%x", start, start+uintptr(s.mapped()))
	f, err := os.OpenFile(link, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	i := &memfdInode{fd: int(f.Fd()), MemfdInodeEntry: &memfd.MemfdInodeEntry{
		Size: proto.Uint64(s.mapped()), Shmid: proto.Uint32(uint32(id)), HugetlbFlag: s.HugetlbFlag,
	}}
	return i.fill(src)
}

// Finish marks those for removal that were so: they live as long as somebody has them attached.
func (v *SysVs) Finish() error {
	var errs []error
	for id, s := range v.segments {
		if s.made && s.GetDesc().GetMode()&shmDest != 0 {
			errs = append(errs, s.remove(int(id)))
		}
	}
	return errors.Join(errs...)
}

// emitAttach attaches a segment as an area says. A part of one, where the rest was unmapped, is attached anywhere and moved.
func emitAttach(b *remote.Builder, a *Area) {
	var flags uint32
	if a.OpenFlags&unix.O_ACCMODE == unix.O_RDONLY {
		flags |= shmRdonly
	}
	if a.Prot&unix.PROT_EXEC != 0 {
		flags |= shmExec
	}
	if a.Offset == 0 && a.Rest == 0 {
		b.Call(unix.SYS_SHMAT, remote.Imm(a.Object), remote.Imm(a.Start), remote.Imm(flags)).Expect(a.Start)
		mprotect(b, a)
		return
	}
	whole := b.Call(unix.SYS_SHMAT, remote.Imm(a.Object), remote.Imm(0), remote.Imm(flags)).Must()
	part := b.Add(whole, remote.Imm(a.Offset))
	b.Call(unix.SYS_MREMAP, part, remote.Imm(a.Len()), remote.Imm(a.Len()), remote.Imm(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED),
		remote.Imm(a.Start)).Expect(a.Start)
	if a.Offset > 0 {
		b.Call(unix.SYS_MUNMAP, whole, remote.Imm(a.Offset)).Must().Discard()
	}
	if a.Rest > 0 {
		b.Call(unix.SYS_MUNMAP, b.Add(part, remote.Imm(a.Len())), remote.Imm(a.Rest)).Must().Discard()
	}
	mprotect(b, a)
}
