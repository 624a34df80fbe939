package collectors

import (
	"fmt"
	"io"
	"os"

	"cryo/internal/extents"
	"cryo/internal/fhandle"
	"cryo/internal/image"

	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	img_time "github.com/checkpoint-restore/go-criu/v8/crit/images/time"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// ghost stores a file that has no name any more: ghost-file-ID.img, once for each inode however often it is open.
func (f *Files) ghost(p *Probe, id uint32, name string) error {
	key := inode{dev: p.Stat.Dev, ino: p.Stat.Ino}
	num, known := f.ghosts[key]
	if !known {
		if size := uint64(p.Stat.Blocks) * 512; size > uint64(f.env.Options.GhostLimit) {
			return p.Obstacle(fmt.Sprintf("deleted file %s of %d bytes on disk, more than the limit of %d", name, size,
				uint64(f.env.Options.GhostLimit)), "--ghost-limit")
		}
		num = uint32(len(f.ghosts) + 1)
		if err := f.writeGhost(p, num); err != nil {
			return fmt.Errorf("store deleted file %s: %w", name, err)
		}
		f.ghosts[key] = num
	}
	f.addRemap(id, num, remap_file_path.RemapType_GHOST)
	return nil
}

func timeval(t unix.Timespec) *img_time.Timeval {
	return &img_time.Timeval{TvSec: proto.Uint64(uint64(t.Sec)), TvUsec: proto.Uint64(uint64(t.Nsec) / 1000)}
}

func (f *Files) writeGhost(p *Probe, num uint32) (err error) {
	st := &p.Stat
	e := &ghost_file.GhostFileEntry{
		Uid: proto.Uint32(st.Uid), Gid: proto.Uint32(st.Gid), Mode: proto.Uint32(st.Mode),
		Dev: proto.Uint32(fhandle.StatDev(st.Dev)), Ino: proto.Uint64(st.Ino),
		Atim: timeval(st.Atim), Mtim: timeval(st.Mtim),
	}
	switch p.mode() {
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = proto.Uint32(uint32(st.Rdev))
	case unix.S_IFLNK:
		if e.SymlnkTarget, err = p.target(); err != nil {
			return err
		}
	case unix.S_IFREG:
		// Holes stay holes: always in chunks, even if the file is small.
		e.Chunks, e.Size = proto.Bool(true), proto.Uint64(uint64(st.Size))
	}
	out, err := image.Create(f.env.Images, image.GhostFile, uint64(num))
	if err != nil {
		return err
	}
	err = out.Entry(e)
	if err == nil && e.GetChunks() {
		err = f.chunks(p, out)
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// target reads where a symbolic link, opened with O_PATH, leads to.
func (p *Probe) target() (*string, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return nil, err
	}
	return proto.String(string(buf[:n])), nil
}

// chunks writes the parts of a file that hold data.
func (f *Files) chunks(p *Probe, out *image.Output[*ghost_file.GhostChunkEntry]) error {
	// The task may hold it for writing only.
	fd, err := p.readable(unix.O_RDONLY)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), p.entry())
	defer file.Close()
	parts, err := extents.Of(fd, p.Stat.Size, f.env.Options.GhostFiemap)
	if err != nil {
		return err
	}
	for _, part := range parts {
		e := &ghost_file.GhostChunkEntry{Off: proto.Uint64(uint64(part.Off)), Len: proto.Uint64(uint64(part.Len))}
		if err := out.Entry(e); err != nil {
			return err
		}
		if err := out.Payload(io.NewSectionReader(file, part.Off, part.Len)); err != nil {
			return err
		}
	}
	return nil
}
