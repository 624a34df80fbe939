package collectors

import (
	"fmt"
	"strings"

	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Memfd collects descriptors of memory files: memfd_create(2), Linux 3.17, with huge pages 4.14. Images: files.img,
// memfd.img, and pagemap-shmem-ID.img for the contents, whose ID is the inode number.
type Memfd struct{}

// Match takes what lies on the kernel's internal tmpfs and hugetlbfs; nothing there has a path.
func (Memfd) Match(p *Probe) bool {
	return p.mode() == unix.S_IFREG && p.Flags&unix.O_PATH == 0 && (vma.IsShmemDev(p.Stat.Dev) || vma.HugePageOf(p.Stat.Dev) != 0)
}

// Collect makes a memfd_file_entry.
func (Memfd) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	link, err := p.Link()
	if err != nil {
		return nil, err
	}
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	inode, err := f.env.Shared.memfd(p.Task, p.Entry, fd, &p.Stat, link)
	if err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Memfd: memfdFile(id, p.Flags, uint64(p.Info.Pos), inode, p)}, nil
}

func memfdFile(id, flags uint32, pos uint64, inode uint32, p *Probe) *memfd.MemfdFileEntry {
	e := &memfd.MemfdFileEntry{Id: &id, Flags: &flags, Pos: &pos, InodeId: &inode, Fown: noOwner()}
	if p != nil {
		e.Fown = p.Owner
	}
	return e
}

// memfdIDs are the numbers of one memory file: of its inode, and of the entry all its mappings share.
type memfdIDs struct{ inode, mapping uint32 }

// memfdMapping returns the id of the file entry that mappings of a memory file name. How it is opened for a mapping is
// in the mapping's fdflags.
func (s *SharedMemory) memfdMapping(env *Env, t *Task, mp *vma.Mapping) (uint32, error) {
	link := mapLink(mp)
	fd, err := t.Proc.Open(link, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("fstat %s: %w", t.Proc.Path(link), err)
	}
	inode, err := s.memfd(t, link, fd, &st, mp.Name)
	if err != nil {
		return 0, err
	}
	ids := s.memfds[deviceInode{st.Dev, st.Ino}]
	if ids.mapping == 0 {
		ids.mapping = env.Files.FreshID()
		env.Files.Add(&fdinfo.FileEntry{
			Type: fdinfo.FdTypes_MEMFD.Enum(), Id: proto.Uint32(ids.mapping),
			Memfd: memfdFile(ids.mapping, unix.O_RDONLY, 0, inode, nil),
		})
	}
	return ids.mapping, nil
}

// memfd enters the memory file behind link below the task's /proc/PID, with fd open on it, and returns the number of
// its inode entry.
func (s *SharedMemory) memfd(t *Task, link string, fd int, st *unix.Stat_t, name string) (uint32, error) {
	key := deviceInode{st.Dev, st.Ino}
	if ids := s.memfds[key]; ids != nil {
		return ids.inode, nil
	}
	if uint64(uint32(st.Ino)) != st.Ino {
		return 0, fmt.Errorf("memory file %s: inode number %d is too large for the image", name, st.Ino)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil { // hugetlb before Linux 4.16: as if nobody may seal it
		seals = unix.F_SEAL_SEAL
	}
	ids := &memfdIDs{inode: uint32(len(s.inodes) + 1)}
	path, _ := deleted(name)
	e := &memfd.MemfdInodeEntry{
		Name: proto.String(strings.TrimPrefix(path, "/memfd:")), Uid: &st.Uid, Gid: &st.Gid,
		Size: proto.Uint64(uint64(st.Size)), Shmid: proto.Uint32(uint32(st.Ino)), Seals: proto.Uint32(uint32(seals)),
		InodeId: proto.Uint64(uint64(ids.inode)), Mode: &st.Mode,
	}
	if size := vma.HugePageOf(st.Dev); size != 0 {
		e.HugetlbFlag = proto.Uint32(unix.MFD_HUGETLB | vma.MapHuge(size))
	}
	s.inodes = append(s.inodes, e)
	s.memfds[key] = ids
	s.object(key, t, link).size = uint64(st.Size)
	return ids.inode, nil
}
