package collectors

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cryo/internal/image"
	"cryo/internal/lazy"
	"cryo/internal/pagecopy"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"golang.org/x/sys/unix"
)

// SharedMemory is the table of memory objects that belong to no single task: shared anonymous memory, memfds and
// SysV segments. Each
// is stored once, in pagemap-shmem-ID.img, where ID is its inode number, whoever maps it.
//
// Objects are entered in task order by one goroutine; Dump comes when all tasks are registered.
type SharedMemory struct {
	objects []*sharedObject // in order of discovery
	byInode map[deviceInode]*sharedObject
	inodes  []*memfd.MemfdInodeEntry
	memfds  map[deviceInode]*memfdIDs
	sysv    sysvSegments
	files   map[mappedFile]uint64 // ids of mapped files: most tasks of a tree have the same libraries
	before  image.Source          // the set this one builds on, nil for none
}

type deviceInode struct{ dev, ino uint64 }

// sharedObject is one object and where to read it from.
type sharedObject struct {
	id   uint64 // shmid in the images
	size uint64 // bytes
	upto uint64 // where the last mapping of it ends
	task *Task
	link string // below task's /proc/PID: "map_files/..." or "fd/..."
	zero bool   // pages of zeros are stored too: they are no holes to who has them watched
}

// NewSharedMemory returns an empty table.
func NewSharedMemory() *SharedMemory {
	return &SharedMemory{byInode: map[deviceInode]*sharedObject{}, memfds: map[deviceInode]*memfdIDs{},
		sysv: sysvSegments{known: map[uint64]bool{}}, files: map[mappedFile]uint64{}}
}

// mapped enters the shared anonymous memory behind a mapping. What of it is not mapped can be reached by mremap(2) still.
func (s *SharedMemory) mapped(t *Task, mp *vma.Mapping) error {
	o := s.object(deviceInode{mp.Dev, mp.Inode}, t, mapLink(mp))
	if o.size == 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(t.Proc.Fd(), o.link, &st, 0); err != nil {
			return fmt.Errorf("stat %s: %w", t.Proc.Path(o.link), err)
		}
		o.size = (uint64(st.Size) + image.PageSize - 1) &^ (image.PageSize - 1)
	}
	o.upto = max(o.upto, mp.Offset+mp.Len())
	return nil
}

// sizeOf is how large the shared anonymous memory behind a mapping is, 0 if it ends where the last mapping of it does.
func (s *SharedMemory) sizeOf(mp *vma.Mapping) uint64 {
	o := s.byInode[deviceInode{mp.Dev, mp.Inode}]
	if o == nil || o.size == o.upto || mp.HugePage() != 0 {
		return 0
	}
	return o.size
}

func (s *SharedMemory) object(key deviceInode, t *Task, link string) *sharedObject {
	o := s.byInode[key]
	if o == nil {
		o = &sharedObject{id: key.ino, task: t, link: link}
		s.byInode[key] = o
		s.objects = append(s.objects, o)
	}
	return o
}

// keepZero has pages of zeros stored of the object behind a mapping.
func (s *SharedMemory) keepZero(mp *vma.Mapping) {
	if o := s.byInode[deviceInode{mp.Dev, mp.Inode}]; o != nil {
		o.zero = true
	}
}

// Dump stores the contents of all objects. open opens the page map of an object.
func (s *SharedMemory) Dump(ctx context.Context, open func(image.PagemapKind, uint64) (PageDest, error), stats *MemoryStats) error {
	for _, o := range s.objects {
		if o.size == 0 {
			continue
		}
		dst, err := open(image.ShmemPages, o.id)
		if err != nil {
			return err
		}
		before, err := s.storedBefore(o)
		if err == nil {
			err = o.dump(ctx, dst, before, stats)
		}
		if before != nil {
			before.Close()
		}
		if err := errors.Join(err, dst.Close()); err != nil {
			return fmt.Errorf("shared memory %d: %w", o.id, err)
		}
	}
	return nil
}

// dump stores the segments with data. What is a hole, or zero, is not stored.
func (o *sharedObject) dump(ctx context.Context, dst PageDest, before *lazy.Local, stats *MemoryStats) (err error) {
	fd, err := o.task.Proc.Open(o.link, unix.O_RDONLY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), filepath.Base(o.link))
	defer f.Close()
	copier := pagecopy.New(ctx, pagecopy.File{File: f}, dst, pagecopy.Workers(), &stats.Shared)
	defer func() {
		if cerr := copier.Close(); err == nil {
			err = cerr
		}
	}()
	put := copier.Put
	if before != nil {
		put = (&comparing{f: f, before: before, have: before.Late(), put: copier.Put, own: make([]byte, compareStep)}).Put
	}
	return segments(f, o.size, func(start, end uint64) error {
		r := pagecopy.Range{Addr: start, Len: end - start, KeepZero: o.zero}
		if o.upto <= start || o.upto >= end {
			return put(o.marked(r))
		}
		r.Len = o.upto - start
		if err := put(r); err != nil {
			return err
		}
		return put(o.marked(pagecopy.Range{Addr: o.upto, Len: end - o.upto, KeepZero: o.zero}))
	})
}

// marked makes entries of their own of what is not mapped: criu passes over entries that reach beyond the last mapping.
func (o *sharedObject) marked(r pagecopy.Range) pagecopy.Range {
	if o.upto != 0 && r.Addr >= o.upto {
		r.Flags |= image.PELazy
	}
	return r
}

// segments calls yield for the page-aligned stretches of the first size bytes of f that are no holes. Filesystems that
// do not tell holes (hugetlbfs) are one stretch.
func segments(f *os.File, size uint64, yield func(start, end uint64) error) error {
	const page = image.PageSize
	size = (size + page - 1) &^ (page - 1)
	for at := uint64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), int64(at), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		hole := int64(size)
		if errors.Is(err, unix.EINVAL) {
			data, err = int64(at), nil
		} else if err == nil {
			hole, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		}
		if err != nil {
			return fmt.Errorf("holes of %s: %w", f.Name(), err)
		}
		start, end := uint64(data)&^(page-1), min((uint64(hole)+page-1)&^(page-1), size)
		if start >= end {
			return nil
		}
		if err := yield(start, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// Write writes memfd.img and what there is of SysV segments.
func (s *SharedMemory) Write(set image.Creator) error {
	if err := s.sysv.write(set); err != nil || len(s.inodes) == 0 {
		return err
	}
	return image.Write(set, image.MemfdInode, 0, s.inodes...)
}
