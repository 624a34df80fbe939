package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// RegFile restores what is opened by a name: regular files, directories, symbolic links and others as mere handles
// (O_PATH), the memory devices, files of /proc; deleted ones too.
type RegFile struct{}

// Plan makes sure that the file is there and unchanged.
func (RegFile) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetReg() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no reg", e.GetId())
	}
	n, err := p.Paths.Get(e.GetId())
	if err != nil {
		return nil, err
	}
	r := n.Entry
	if f := n.found; f != nil && r.GetFlags()&unix.O_PATH == 0 {
		switch f.st.Mode & unix.S_IFMT {
		case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFLNK:
			// Opening a fifo may wait for ever, and the other two cannot be opened.
			return nil, fmt.Errorf("file %s has changed: it is %s", r.GetName(), typeName(f.st.Mode))
		}
	}
	return &regFile{n}, nil
}

type regFile struct{ *Named }

func (r *regFile) Needs() []uint32 { return nil }

func (r *regFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	id := r.Entry.GetId()
	if r.handout || r.held >= 0 && r.Entry.GetFlags()&(unix.O_PATH|unix.O_NOFOLLOW) == unix.O_PATH|unix.O_NOFOLLOW {
		// As it is: an inherited file, or a handle on a link, which opening would follow.
		s.FromTool(r.held, id)
		return nil
	}
	cloexec := s.Cloexec(id)
	op := r.emit(s.pool, openFlags(r.Entry.GetFlags())|cloexec)
	s.Made(op, id, cloexec)
	if pos := r.position(); pos != 0 {
		b.CallNumbers(unix.SYS_LSEEK, uint64(s.Number(id)), uint64(pos), unix.SEEK_SET).Must().Discard()
	}
	return nil
}

// position is where to go on reading or writing, 0 where there is nothing to be done.
func (r *regFile) position() int64 {
	if r.Entry.GetFlags()&unix.O_PATH != 0 || int64(r.Entry.GetPos()) < 0 {
		return 0
	}
	return int64(r.Entry.GetPos())
}
