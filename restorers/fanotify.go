package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"golang.org/x/sys/unix"
)

// Fanotify restores fanotify groups (fanotify_init, Linux 2.6.37) with their marks of inodes and mounts.
type Fanotify struct{}

type fanotifyFile struct {
	*fsnotify.FanotifyFileEntry
	watched []*watched
}

// oldMarks reads fanotify-mark.img, where older criu kept what is watched.
func oldMarks(p *FilePlanner) (map[uint32][]*fsnotify.FanotifyMarkEntry, error) {
	type key struct{}
	return Shared(p, key{}, func() (map[uint32][]*fsnotify.FanotifyMarkEntry, error) {
		list, err := image.ReadOptional(p.Set.Source, image.FanotifyMark, 0)
		all := map[uint32][]*fsnotify.FanotifyMarkEntry{}
		for _, m := range list {
			all[m.GetId()] = append(all[m.GetId()], m)
		}
		return all, err
	})
}

// Plan checks that each mark is of something.
func (Fanotify) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := e.GetFfy()
	if f == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no ffy", e.GetId())
	}
	old, err := oldMarks(p)
	if err != nil {
		return nil, err
	}
	f.Mark = append(f.Mark, old[f.GetId()]...)
	for _, m := range f.Mark {
		inode := m.GetType() == fsnotify.MarkType_INODE && m.Ie != nil
		if !inode && (m.GetType() != fsnotify.MarkType_MOUNT || m.GetMe() == nil || m.GetMe().Path == nil) {
			return nil, image.Errorf(image.Files.File(0), -1, "id %d: a mark that is neither of an inode nor of a mount with a path", f.GetId())
		}
	}
	return &fanotifyFile{FanotifyFileEntry: f}, nil
}

// Needs is nothing.
func (f *fanotifyFile) Needs() []uint32 { return nil }

// Settle finds the files and mounts to watch.
func (f *fanotifyFile) Settle(p *FilePlanner) error {
	for _, m := range f.GetMark() {
		var w *watched
		var err error
		if m.GetType() == fsnotify.MarkType_INODE {
			w, err = p.Paths.watch(m.GetSDev(), m.GetIe().GetIIno(), m.GetIe().GetFHandle())
		} else {
			w = &watched{fd: -1}
			err = p.Paths.watchPath(w, m.GetMe().GetPath())
		}
		if err != nil {
			return fmt.Errorf("fanotify mark: %w", err)
		}
		f.watched = append(f.watched, w)
	}
	return nil
}

func (f *fanotifyFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch lv {
	case Open:
		flags := f.GetFaflags()
		cloexec := s.Cloexec(f.GetId())
		if cloexec != 0 {
			flags |= unix.FAN_CLOEXEC
		}
		if f.GetFlags()&unix.O_NONBLOCK != 0 {
			flags |= unix.FAN_NONBLOCK
		}
		s.Made(b.Call(unix.SYS_FANOTIFY_INIT, remote.Imm(flags), remote.Imm(f.GetEvflags())), f.GetId(), cloexec)
	case Watch:
		// The kernel lists the newest first.
		for i := len(f.watched) - 1; i >= 0; i-- {
			if err := f.mark(b, s, f.GetMark()[i], f.watched[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flags of fanotify_mark that stay with a mark (linux/fanotify.h).
const (
	fanMarkEvictable = 0x200 // Linux 5.19
	fanMarkIgnore    = 0x400 // Linux 6.0
)

// mark sets what a mark watches, and what it ignores.
func (f *fanotifyFile) mark(b *remote.Builder, s *Slots, m *fsnotify.FanotifyMarkEntry, w *watched) error {
	flags := unix.FAN_MARK_ADD | m.GetMflags()&fanMarkEvictable
	if m.GetType() == fsnotify.MarkType_MOUNT {
		flags |= unix.FAN_MARK_MOUNT
	}
	ignore := flags | m.GetMflags()&(fanMarkIgnore|unix.FAN_MARK_IGNORED_SURV_MODIFY)
	if ignore&fanMarkIgnore == 0 {
		ignore |= unix.FAN_MARK_IGNORED_MASK
	}
	return w.emit(b, s, func(path remote.Arg) {
		for _, set := range []struct{ flags, mask uint32 }{{flags, m.GetMask()}, {ignore, m.GetIgnoredMask()}} {
			if set.mask != 0 {
				b.Call(unix.SYS_FANOTIFY_MARK, remote.Imm(s.Number(f.GetId())), remote.Imm(set.flags), remote.Imm(set.mask),
					remote.Imm(unix.AT_FDCWD), path).Must().Discard()
			}
		}
	})
}
