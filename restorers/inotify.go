package restorers

import (
	"cmp"
	"fmt"
	"slices"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"golang.org/x/sys/unix"
)

// Inotify restores inotify instances (inotify_init1, Linux 2.6.27) with the numbers their watches had
// (INOTIFY_IOC_SETNEXTWD, Linux 4.16).
type Inotify struct{}

type inotifyFile struct {
	*fsnotify.InotifyFileEntry
	watched []*watched
}

// oldWds reads inotify-wd.img, where older criu kept what is watched.
func oldWds(p *FilePlanner) (map[uint32][]*fsnotify.InotifyWdEntry, error) {
	type key struct{}
	return Shared(p, key{}, func() (map[uint32][]*fsnotify.InotifyWdEntry, error) {
		list, err := image.ReadOptional(p.Set.Source, image.InotifyWd, 0)
		all := map[uint32][]*fsnotify.InotifyWdEntry{}
		for _, w := range list {
			all[w.GetId()] = append(all[w.GetId()], w)
		}
		return all, err
	})
}

// inotifyMask is what a watch may ask for and the kernel tells again; older kernels told of their own bits as well.
const inotifyMask = unix.IN_ALL_EVENTS | unix.IN_EXCL_UNLINK | unix.IN_ONESHOT

// Plan puts the watches in the order of their numbers: the kernel numbers upwards.
func (Inotify) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := e.GetIfy()
	if f == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no ify", e.GetId())
	}
	old, err := oldWds(p)
	if err != nil {
		return nil, err
	}
	f.Wd = append(f.Wd, old[f.GetId()]...)
	slices.SortFunc(f.Wd, func(a, b *fsnotify.InotifyWdEntry) int { return cmp.Compare(a.GetWd(), b.GetWd()) })
	last := uint32(0)
	for _, w := range f.Wd {
		if w.GetWd() <= last || int32(w.GetWd()) <= 0 || w.GetMask()&unix.IN_ALL_EVENTS == 0 {
			return nil, image.Errorf(image.Files.File(0), -1, "id %d: wd %d with mask %#x is no watch", f.GetId(), w.GetWd(), w.GetMask())
		}
		last = w.GetWd()
	}
	return &inotifyFile{InotifyFileEntry: f}, nil
}

// Needs is nothing.
func (f *inotifyFile) Needs() []uint32 { return nil }

// Settle finds the files to watch.
func (f *inotifyFile) Settle(p *FilePlanner) error {
	for _, wd := range f.GetWd() {
		w, err := p.Paths.watch(wd.GetSDev(), wd.GetIIno(), wd.GetFHandle())
		if err != nil {
			return fmt.Errorf("wd %d: %w", wd.GetWd(), err)
		}
		f.watched = append(f.watched, w)
	}
	return nil
}

// inotifyIocSetNextWd is INOTIFY_IOC_SETNEXTWD (linux/inotify.h).
const inotifyIocSetNextWd = 0x40044900

func (f *inotifyFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch lv {
	case Open:
		cloexec := s.Cloexec(f.GetId())
		s.Made(b.Call(unix.SYS_INOTIFY_INIT1, remote.Imm(int(f.GetFlags())&unix.O_NONBLOCK|cloexec)), f.GetId(), cloexec)
	case Watch:
		fd := remote.Imm(s.Number(f.GetId()))
		for i, wd := range f.GetWd() {
			b.Call(unix.SYS_IOCTL, fd, remote.Imm(inotifyIocSetNextWd), remote.Imm(wd.GetWd())).Must().Discard()
			err := f.watched[i].emit(b, s, func(path remote.Arg) {
				b.Call(unix.SYS_INOTIFY_ADD_WATCH, fd, path, remote.Imm(wd.GetMask()&inotifyMask)).Expect(uint64(wd.GetWd()))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
