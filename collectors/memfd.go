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
	ids, err := f.env.Shared.memfd(f.env, p.Task, p.entry(), fd, &p.Stat, link)
	if err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Memfd: memfdFile(id, p.Flags, uint64(p.Info.Pos), ids.inode, p)}, nil
}

func memfdFile(id, flags uint32, pos uint64, inode uint32, p *Probe) *memfd.MemfdFileEntry {
	e := &memfd.MemfdFileEntry{Id: &id, Flags: &flags, Pos: &pos, InodeId: &inode, Fown: noOwner()}
	if p != nil {
		e.Fown = p.Owner
	}
	return e
}

// memfdIDs are the numbers of one memory file: of its inode, and of the entry all its mappings share, 0 if it has none.
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
	ids, err := s.memfd(env, t, link, fd, &st, mp.Name)
	if err != nil {
		return 0, err
	}
	ids.entry(env)
	return ids.mapping, nil
}

// entry makes sure that there is an entry for mappings.
func (ids *memfdIDs) entry(env *Env) {
	if ids.mapping != 0 {
		return
	}
	ids.mapping = env.Files.FreshID()
	env.Files.Add(&fdinfo.FileEntry{
		Type: fdinfo.FdTypes_MEMFD.Enum(), Id: proto.Uint32(ids.mapping),
		Memfd: memfdFile(ids.mapping, unix.O_RDONLY, 0, ids.inode, nil),
	})
}

// memfd enters the memory file behind link below the task's /proc/PID, with fd open on it.
func (s *SharedMemory) memfd(env *Env, t *Task, link string, fd int, st *unix.Stat_t, name string) (*memfdIDs, error) {
	key := deviceInode{st.Dev, st.Ino}
	if ids := s.memfds[key]; ids != nil {
		return ids, nil
	}
	if uint64(uint32(st.Ino)) != st.Ino {
		return nil, fmt.Errorf("memory file %s: inode number %d is too large for the image", name, st.Ino)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil { // hugetlb before Linux 4.16: as if nobody may seal it
		seals = unix.F_SEAL_SEAL
	}
	ids := &memfdIDs{inode: uint32(len(s.inodes) + 1)}
	path, _ := deleted(name)
	own, isMemfd := strings.CutPrefix(path, "/memfd:")
	e := &memfd.MemfdInodeEntry{
		Name: proto.String(own), Uid: &st.Uid, Gid: &st.Gid,
		Size: proto.Uint64(uint64(st.Size)), Shmid: proto.Uint32(uint32(st.Ino)), Seals: proto.Uint32(uint32(seals)),
		InodeId: proto.Uint64(uint64(ids.inode)), Mode: &st.Mode,
	}
	if size := vma.HugePageOf(st.Dev); size != 0 {
		e.HugetlbFlag = proto.Uint32(unix.MFD_HUGETLB | vma.MapHuge(size))
	}
	s.inodes = append(s.inodes, e)
	s.memfds[key] = ids
	o := s.object(key, t, link)
	o.size = max(o.size, uint64(st.Size))
	if !isMemfd {
		ids.entry(env) // for those who map it as shared anonymous memory: see mappedAsFile
	}
	return ids, nil
}

// mappedAsFile tells whether shared anonymous memory is in the images as a memory file, because somebody has it open or
// maps it private, which is possible by way of /proc/PID/map_files; and then under which file id. It may be asked when
// all tasks are registered.
func (s *SharedMemory) mappedAsFile(mp *vma.Mapping) (uint32, bool) {
	ids := s.memfds[deviceInode{mp.Dev, mp.Inode}]
	if ids == nil {
		return 0, false
	}
	return ids.mapping, true
}
