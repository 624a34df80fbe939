package restorers

import (
	"errors"
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
)

// TTY restores terminals whose other end stayed outside of the tree. Those of a job that was started from a shell
// (--shell-job) become the terminal that the restore is started from, /dev/tty is opened anew, and external ones are
// handed in (--inherit-fd fd[N]:tty[RDEV:DEV]). Their settings are put on again; the size of the window is that of the
// new one.
type TTY struct{}

type ttyFile struct {
	id, flags uint32
	info      *tty.TtyInfoEntry
	set       *Set
	tool      int    // descriptor of the tool that is opened once more or, for an external terminal, handed out; -1: path
	path      string // for /dev/tty
	settings  bool   // this one puts them on
	front     bool   // and makes the job the one in front
}

const ttyMaster = 1 // bit of the number of a terminal: the other end

// ttyInfos reads tty-info.img.
func ttyInfos(p *FilePlanner) (map[uint32]*tty.TtyInfoEntry, error) {
	type key struct{}
	return Shared(p, key{}, func() (map[uint32]*tty.TtyInfoEntry, error) {
		list, err := image.ReadOptional(p.Set.Source, image.TTYInfo, 0)
		all := map[uint32]*tty.TtyInfoEntry{}
		for i, e := range list {
			if all[e.GetId()] != nil {
				return nil, image.Errorf(image.TTYInfo.File(0), i, "id %d is there twice", e.GetId())
			}
			all[e.GetId()] = e
		}
		return all, err
	})
}

type ttyKey uint32

// Plan decides which terminal takes the place.
func (TTY) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	te := e.GetTty()
	if te == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no tty", e.GetId())
	}
	infos, err := ttyInfos(p)
	if err != nil {
		return nil, err
	}
	info := infos[te.GetTtyInfoId()]
	if info == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: tty_info_id %d is no terminal of the set", e.GetId(), te.GetTtyInfoId())
	}
	f := &ttyFile{id: e.GetId(), flags: te.GetFlags(), info: info, set: p.Set, tool: -1}
	if err := f.choose(p); err != nil {
		return nil, err
	}
	_, err = Shared(p, ttyKey(info.GetId()), func() (bool, error) {
		f.settings = info.GetType() != tty.TtyType_CTTY
		f.front = f.settings && p.Opt.ShellJob
		return true, nil
	})
	return f, err
}

func (f *ttyFile) choose(p *FilePlanner) error {
	key := fmt.Sprintf("tty[%x:%x]", f.info.GetRdev(), f.info.GetDev())
	if fd, ok := p.Paths.inherited(key); ok {
		f.tool = fd
		return nil
	}
	switch typ := f.info.GetType(); {
	case typ == tty.TtyType_EXT_TTY:
		return fmt.Errorf("a terminal that stayed outside of the dump: hand it in with --inherit-fd fd[N]:%s", key)
	case typ == tty.TtyType_PTY && f.info.GetId()&ttyMaster != 0:
		return errors.New("the master of a pseudo terminal, which cannot be restored yet")
	case typ != tty.TtyType_PTY && typ != tty.TtyType_CTTY:
		return fmt.Errorf("a terminal of type %s, which cannot be restored yet", typ)
	case !p.Opt.ShellJob:
		return fmt.Errorf("terminal /dev/pts/%d, whose other end was outside of the dump: --shell-job puts the one of the restore in its place", f.info.GetPty().GetIndex())
	case typ == tty.TtyType_CTTY:
		f.path = "/dev/tty"
	case p.Opt.Terminal < 0:
		return fmt.Errorf("terminal /dev/pts/%d, whose place standard input of the restore is to take, but that is no terminal", f.info.GetPty().GetIndex())
	default:
		f.tool = p.Opt.Terminal
	}
	return nil
}

// Needs is nothing.
func (f *ttyFile) Needs() []uint32 { return nil }

func (f *ttyFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch {
	case lv == Open && f.info.GetType() == tty.TtyType_EXT_TTY:
		s.FromTool(f.tool, f.id)
	case lv == Open:
		cloexec := s.Cloexec(f.id)
		flags := int(f.flags&(unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND)) | unix.O_NOCTTY | cloexec
		op := remote.Op{}
		if f.path != "" {
			op = b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), s.path(f.path), remote.Imm(flags), remote.Imm(0))
		} else {
			op = s.Reopen(s.plan.tool, f.tool, flags)
		}
		s.Made(op, f.id, cloexec)
	case lv == Attach && f.settings:
		f.emitSettings(b, s)
	}
	return nil
}

// emitSettings puts the settings on, and gives the terminal to the job's process group: keys send their signals there.
// A task of the background may do that while it blocks SIGTTOU, as programs do.
func (f *ttyFile) emitSettings(b *remote.Builder, s *Slots) {
	fd := remote.Imm(s.Number(f.id))
	if t := f.info.GetTermiosLocked(); t != nil {
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSLCKTRMIOS), b.Bytes(termios(t))).Discard() // needs CAP_SYS_ADMIN
	}
	if t := f.info.GetTermios(); t != nil {
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TCSETS), b.Bytes(termios(t))).Must().Discard()
	}
	root := f.set.Tasks[0]
	if f.front && root.SID != root.PID && root.PGID == root.PID {
		// Where the terminal is not that of the restore's session the job cannot be in front of it.
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSPGRP), b.Bytes(words32([]uint32{uint32(root.PGID)}))).Discard()
	}
}

// controlChars is how many the kernel's struct termios has.
const controlChars = 19

// termios is the kernel's struct termios. In the image four control characters are in each word.
func termios(t *tty.TermiosEntry) []byte {
	raw := append(words32([]uint32{t.GetCIflag(), t.GetCOflag(), t.GetCCflag(), t.GetCLflag()}), byte(t.GetCLine()))
	chars := make([]byte, controlChars)
	copy(chars, words32(t.GetCCc()))
	return append(raw, chars...)
}
