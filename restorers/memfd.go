package restorers

import (
	"context"
	"fmt"
	"os"
	"strings"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"golang.org/x/sys/unix"
)

// Memfds makes memory files (memfd_create(2), Linux 3.17; with huge pages 4.14). The tool makes and fills each before any
// task maps it; tasks open it through the tool's /proc/PID/fd.
type Memfds struct {
	set    *Set
	inodes map[uint32]*memfdInode
}

type memfdInode struct {
	*memfd.MemfdInodeEntry
	fd    int    // the tool's own; -1: not made yet
	first uint32 // the file that gets the tool's open file description; 0: none
}

// NewMemfds reads and checks memfd.img.
func NewMemfds(s *Set) (*Memfds, error) {
	m := &Memfds{set: s, inodes: map[uint32]*memfdInode{}}
	all, err := image.ReadOptional(s.Source, image.MemfdInode, 0)
	if err != nil {
		return nil, err
	}
	for i, e := range all {
		if int64(e.GetSize()) < 0 || strings.ContainsRune(e.GetName(), 0) || len(e.GetName()) > maxMemfdName {
			return nil, image.Errorf(image.MemfdInode.File(0), i, "size %d or name %q cannot be", e.GetSize(), e.GetName())
		}
		m.inodes[uint32(e.GetInodeId())] = &memfdInode{MemfdInodeEntry: e, fd: -1}
	}
	for id, f := range s.Files {
		if f.GetType() != fdinfo.FdTypes_MEMFD {
			continue
		}
		if f.GetMemfd() == nil || m.inodes[f.GetMemfd().GetInodeId()] == nil {
			return nil, image.Errorf(image.Files.File(0), -1, "id %d is a memory file whose inode is not in the set", id)
		}
	}
	return m, nil
}

// maxMemfdName is the kernel's bound of a name: NAME_MAX without "memfd:".
const maxMemfdName = 249

// Prepare makes all files with their contents.
func (m *Memfds) Prepare(ctx context.Context) error {
	for _, i := range m.inodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := i.make(m.set.Source); err != nil {
			return fmt.Errorf("memory file %q: %w", i.GetName(), err)
		}
	}
	return nil
}

func (i *memfdInode) make(src image.Source) (err error) {
	flags := unix.MFD_ALLOW_SEALING | unix.MFD_CLOEXEC
	if h := int(i.GetHugetlbFlag()); h != 0 {
		flags |= unix.MFD_HUGETLB | h&mapHugeMask
	}
	if i.fd, err = unix.MemfdCreate(i.GetName(), flags); err != nil {
		return err
	}
	if err := unix.Ftruncate(i.fd, int64(i.GetSize())); err != nil {
		return fmt.Errorf("make it %d bytes long: %w", i.GetSize(), err)
	}
	if err := i.fill(src); err != nil {
		return err
	}
	if err := unix.Fchown(i.fd, int(i.GetUid()), int(i.GetGid())); err != nil {
		return err
	}
	if i.Mode != nil {
		return unix.Fchmod(i.fd, i.GetMode()&0o7777)
	}
	return nil
}

// fill writes the pages. Files of huge pages take no write(2), so all are written through a mapping.
func (i *memfdInode) fill(src image.Source) error {
	pages, err := openPages(src, image.ShmemPages, uint64(i.GetShmid()))
	if err != nil {
		return err
	}
	defer pages.Close()
	pages.last = true
	window := uint64(8 << 20)
	if shift := i.GetHugetlbFlag() >> unix.MAP_HUGE_SHIFT & unix.MAP_HUGE_MASK; shift != 0 {
		window = 1 << min(shift, 40)
	}
	size := (i.GetSize() + window - 1) &^ (window - 1)
	for base := uint64(0); base < size; base += window {
		r, ok, err := pages.from(base)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if r.Start >= base+window {
			base = r.Start&^(window-1) - window
			continue
		}
		if err := i.fillWindow(pages, base, base+window); err != nil {
			return err
		}
	}
	if r, ok, err := pages.from(size); err != nil || ok {
		if err == nil {
			err = fmt.Errorf("pages at %#x are past its end", r.Start)
		}
		return err
	}
	return nil
}

func (i *memfdInode) fillWindow(pages *pageStream, start, end uint64) error {
	mem, err := unix.Mmap(i.fd, int64(start), int(end-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	limit := (i.GetSize() + image.PageSize - 1) &^ (image.PageSize - 1)
	for at := start; at < end; {
		r, ok, err := pages.from(at)
		if err != nil {
			return err
		}
		if !ok || r.Start >= end {
			return nil
		}
		stop := min(r.End, end)
		if stop > limit {
			return fmt.Errorf("pages %#x-%#x are past its end, %#x", r.Start, r.End, i.GetSize())
		}
		b, err := r.file.bytes(r.off, stop-r.Start)
		if err != nil {
			return err
		}
		copy(mem[r.Start-start:], b)
		at = r.Start + uint64(len(b))
	}
	return nil
}

// EmitOpen opens a memory file in a task, close-on-exec.
func (m *Memfds) EmitOpen(b *remote.Builder, id, flags uint32) remote.Arg {
	return m.emitOpen(b, id, openFlags(flags)|unix.O_CLOEXEC)
}

func (m *Memfds) emitOpen(b *remote.Builder, id uint32, flags int) remote.Op {
	i := m.inodes[m.set.Files[id].GetMemfd().GetInodeId()]
	name := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), i.fd)
	return b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(name), remote.Imm(flags), remote.Imm(0)).Must()
}

// Seal puts the seals on, when everything that may write is mapped, and gives the files up.
func (m *Memfds) Seal() error {
	defer m.Close()
	for _, i := range m.inodes {
		if s := i.GetSeals(); s != 0 {
			if _, err := unix.FcntlInt(uintptr(i.fd), unix.F_ADD_SEALS, int(s)); err != nil {
				return fmt.Errorf("memory file %q: put seals %#x on: %w", i.GetName(), s, err)
			}
		}
	}
	return nil
}

// Close gives the files up.
func (m *Memfds) Close() {
	for _, i := range m.inodes {
		if i.fd >= 0 {
			unix.Close(i.fd)
			i.fd = -1
		}
	}
}

// Memfd restores descriptors of memory files.
type Memfd struct{}

// Plan checks that the file is in the set; NewMemfds has checked the rest.
func (Memfd) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := &memfdFile{e.GetMemfd(), p.Opt.Memfds}
	i := f.files.inodes[f.e.GetInodeId()]
	if i.first == 0 && f.e.GetFlags()&unix.O_ACCMODE == unix.O_RDWR {
		i.first = e.GetId()
	}
	return f, nil
}

type memfdFile struct {
	e     *memfd.MemfdFileEntry
	files *Memfds
}

// Needs is nothing.
func (f *memfdFile) Needs() []uint32 { return nil }

func (f *memfdFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	id, cloexec := f.e.GetId(), s.Cloexec(f.e.GetId())
	if i := f.files.inodes[f.e.GetInodeId()]; i.first == id {
		// What memfd_create returns does not count as open for writing, so the file can be executed; what open returns
		// does.
		s.FromTool(i.fd, id)
		b.Call(unix.SYS_FCNTL, remote.Imm(s.Number(id)), remote.Imm(unix.F_SETFL), remote.Imm(f.e.GetFlags()&settable)).Must().Discard()
	} else {
		s.Made(f.files.emitOpen(b, id, openFlags(f.e.GetFlags())|cloexec), id, cloexec)
	}
	if pos := f.e.GetPos(); pos != 0 {
		b.Call(unix.SYS_LSEEK, remote.Imm(s.Number(id)), remote.Imm(pos), remote.Imm(unix.SEEK_SET)).Must().Discard()
	}
	return nil
}

// settable are the flags of an open file that fcntl changes.
const settable = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME
