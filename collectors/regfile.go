package collectors

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"cryo/internal/buildid"
	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// RegFile collects everything that is opened again by its path: regular files, directories, symbolic links opened with
// O_PATH, the memory devices, files of /proc.
type RegFile struct{}

// Match takes what has a path.
func (RegFile) Match(p *Probe) bool {
	switch p.mode() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		link, err := p.Link()
		return err == nil && strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/memfd:")
	case unix.S_IFCHR:
		return statelessDevice(p.Stat.Rdev) || p.Flags&unix.O_PATH != 0
	case unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		return p.Flags&unix.O_PATH != 0 && p.FSType != unix.PIPEFS_MAGIC && p.FSType != unix.SOCKFS_MAGIC
	}
	return false
}

// statelessDevice says whether opening the device once more gives the same thing.
func statelessDevice(dev uint64) bool {
	const memMajor, miscMajor = 1, 10
	switch unix.Major(dev) {
	case memMajor: // mem, null, zero, full, random, urandom, kmsg ...
		return true
	case miscMajor:
		const hpet = 228
		minor := unix.Minor(dev)
		return minor == hpet
	}
	return false
}

// Collect makes a reg_file_entry.
func (RegFile) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	reg, err := f.regular(p, id)
	if err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Reg: reg}, nil
}

// regular makes the entry of a file that is restored by its path.
func (f *Files) regular(p *Probe, id uint32) (*regfile.RegFileEntry, error) {
	e := &regfile.RegFileEntry{
		Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Pos: proto.Uint64(0),
		Fown: p.Owner, Mode: proto.Uint32(p.Stat.Mode),
	}
	if p.Info != nil {
		e.Pos = proto.Uint64(uint64(p.Info.Pos))
	}
	if len(f.env.Options.External) > 0 {
		mnt, err := p.mount()
		if err != nil {
			return nil, err
		}
		if ext := fmt.Sprintf("file[%x:%x]", uint32(mnt), p.Stat.Ino); f.env.External(ext) {
			e.Name, e.Ext = proto.String(ext), proto.Bool(true)
			return e, nil
		}
	}
	link, err := p.Link()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(link, "/") {
		return nil, p.Obstacle("a file without a path ("+link+")", "")
	}
	if link, err = f.remap(p, id, link); err != nil {
		return nil, err
	}
	e.Name = proto.String(link)
	return e, f.validation(e, p)
}

// validation adds what a restore recognises the file by. A log that is only appended to grows: it is not looked at.
func (f *Files) validation(e *regfile.RegFileEntry, p *Probe) error {
	log := p.Flags&unix.O_ACCMODE == unix.O_WRONLY && p.Flags&unix.O_APPEND != 0
	if p.mode() != unix.S_IFREG || log {
		return nil
	}
	e.Size = proto.Uint64(uint64(p.Stat.Size))
	if f.env.Options.FileValidation != options.ValidateBuildID || p.Stat.Size <= 4 || p.Stat.Nlink == 0 {
		return nil
	}
	version := fileVersion{p.Stat.Dev, p.Stat.Ino, p.Stat.Size, p.Stat.Mtim}
	words, known := f.buildIDs[version]
	if !known {
		fd, err := p.readable(unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY)
		if err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, errLeased) {
				return nil // unreadable for us (a network filesystem, a lease): its size has to do
			}
			return err
		}
		defer unix.Close(fd)
		words = buildid.Words(fd, p.Stat.Size)
		f.buildIDs[version] = words
	}
	e.BuildId = words
	return nil
}

// fileVersion tells whether a file is still the one that was looked at.
type fileVersion struct {
	dev, ino uint64
	size     int64
	modified unix.Timespec
}

// buildIDWords is a build id as images hold it, nil where a file has none.
type buildIDWords []uint32
