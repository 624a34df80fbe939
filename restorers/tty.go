package restorers

import (
	"fmt"
	"path"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
)

// TTY restores terminals.
//
// Those the tree has to itself (pairs with their masters, the console, virtual terminals, serial lines) are opened by the
// tool before the first task opens a file, one after the other, so that pairs have the numbers they had; there they get
// their settings and what waited in their queues (ttymake.go). The owners fetch them. Then the leaders of sessions take
// their controlling terminals (ttysession.go), and /dev/tty can be opened.
//
// Terminals of a job that was started from a shell (--shell-job), whose other end is outside, become the terminal that the
// restore is started from; or they get a new other end, which is handed to the client (orphan_pts_master). External ones are handed in (--inherit-fd fd[N]:tty[RDEV:DEV]).
type TTY struct{}

type ttyFile struct {
	id, flags uint32
	info      *tty.TtyInfoEntry
	set       *ttySet
	name      string // path of the set, empty for an external one
	mode      *uint32
	how       ttyWay
	tool      int  // descriptor of the tool: opened once more for ttyReopen, handed out otherwise
	settings  bool // this one puts them on
}

// ttyWay is how a task comes by a terminal.
type ttyWay int

const (
	ttyMade   ttyWay = iota // the tool opens it
	ttyHanded               // the tool has it from its user
	ttyReopen               // it takes the place of the tool's
	ttyDevTTY               // it is that of the session
)

const ttyMaster = 1 // bit of the number of a terminal: the master of the pair

// Plan decides what the terminal becomes.
func (TTY) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	te := e.GetTty()
	if te == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no tty", e.GetId())
	}
	set, err := ttysOf(p)
	if err != nil {
		return nil, err
	}
	info := set.infos[te.GetTtyInfoId()]
	if info == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: tty_info_id %d is no terminal of the set", e.GetId(), te.GetTtyInfoId())
	}
	f := &ttyFile{id: e.GetId(), flags: te.GetFlags(), info: info, set: set, tool: -1}
	if info.GetType() != tty.TtyType_EXT_TTY {
		reg, err := ttyPath(p, te)
		if err != nil {
			return nil, err
		}
		f.name, f.mode = reg.GetName(), reg.Mode
	}
	if err := f.choose(p); err != nil {
		return nil, err
	}
	f.settings = f.how == ttyHanded || f.how == ttyReopen
	for _, other := range set.files {
		f.settings = f.settings && other.info != info
	}
	set.files = append(set.files, f)
	return f, nil
}

// ttyPath is the entry with the path of the file. In old sets it has the file's own id.
func ttyPath(p *FilePlanner, te *tty.TtyFileEntry) (*regfile.RegFileEntry, error) {
	id := te.GetRegfId()
	if te.RegfId == nil {
		id = te.GetId()
	}
	reg := p.Set.Files[id].GetReg()
	if reg == nil || !path.IsAbs(reg.GetName()) {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: regf_id %d is no file with a path", te.GetId(), id)
	}
	return reg, nil
}

func (f *ttyFile) choose(p *FilePlanner) error {
	key := fmt.Sprintf("tty[%x:%x]", f.info.GetRdev(), f.info.GetDev())
	if fd, ok := p.Paths.inherited(key); ok {
		f.tool, f.how = fd, ttyHanded
		return nil
	}
	switch typ := f.info.GetType(); {
	case typ == tty.TtyType_EXT_TTY:
		return fmt.Errorf("a terminal that stayed outside of the dump: hand it in with --inherit-fd fd[N]:%s", key)
	case typ == tty.TtyType_CTTY:
		f.how = ttyDevTTY
		if !p.Opt.ShellJob && !f.set.leads(f.info.GetSid()) {
			return fmt.Errorf("/dev/tty of session %d, which was outside of the dump: --shell-job puts that of the restore in its place", f.info.GetSid())
		}
	case typ != tty.TtyType_PTY || f.set.whole(f.info) || p.Opt.PtyMaster != nil:
		return nil
	case !p.Opt.ShellJob:
		return fmt.Errorf("terminal /dev/pts/%d, whose other end was outside of the dump: --shell-job puts the one of the restore in its place", f.info.GetPty().GetIndex())
	case p.Opt.Terminal < 0:
		return fmt.Errorf("terminal /dev/pts/%d, whose place standard input of the restore is to take, but that is no terminal", f.info.GetPty().GetIndex())
	default:
		f.tool, f.how = p.Opt.Terminal, ttyReopen
	}
	return nil
}

// Needs is nothing.
func (f *ttyFile) Needs() []uint32 { return nil }

func (f *ttyFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	cloexec := s.Cloexec(f.id)
	flags := int(f.flags&(unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND)) | unix.O_NOCTTY | cloexec
	switch {
	case lv == Open && f.how == ttyReopen:
		s.Made(s.Reopen(s.plan.tool, f.tool, flags), f.id, cloexec)
	case lv == Open && f.how != ttyDevTTY:
		s.FromTool(f.tool, f.id)
	case lv == Pair && f.how == ttyDevTTY:
		s.Made(b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), s.path("/dev/tty"), remote.Imm(flags), remote.Imm(0)), f.id, cloexec)
	case lv == Attach && f.settings:
		f.emitSettings(b, s)
	}
	return nil
}

// emitSettings puts the settings on a terminal from outside, and gives it to the job's process group: keys send their
// signals there. The size of the window is its own. A task of the background may do that while it blocks SIGTTOU, as
// programs do.
func (f *ttyFile) emitSettings(b *remote.Builder, s *Slots) {
	fd := remote.Imm(s.Number(f.id))
	if t := f.info.GetTermiosLocked(); t != nil {
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSLCKTRMIOS), b.Bytes(rawTermios(t))).Discard() // needs CAP_SYS_ADMIN
	}
	if t := f.info.GetTermios(); t != nil {
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TCSETS), b.Bytes(rawTermios(t))).Must().Discard()
	}
	root := f.set.set.Tasks[0]
	if f.set.shellJob && root.SID != root.PID && root.PGID == root.PID {
		// Where the terminal is not that of the restore's session the job cannot be in front of it.
		b.Call(unix.SYS_IOCTL, fd, remote.Imm(unix.TIOCSPGRP), b.Bytes(words32([]uint32{uint32(root.PGID)}))).Discard()
	}
}

// rawTermios is the kernel's struct termios.
func rawTermios(e *tty.TermiosEntry) []byte {
	t := termios(e)
	return append(append(words32([]uint32{t.Iflag, t.Oflag, t.Cflag, t.Lflag}), t.Line), t.Cc[:]...)
}

// termios makes settings of an entry. In the image four control characters are in each word.
func termios(e *tty.TermiosEntry) *unix.Termios {
	t := &unix.Termios{
		Iflag: e.GetCIflag(), Oflag: e.GetCOflag(), Cflag: e.GetCCflag(), Lflag: e.GetCLflag(), Line: uint8(e.GetCLine()),
		Ispeed: e.GetCIspeed(), Ospeed: e.GetCOspeed(),
	}
	copy(t.Cc[:], words32(e.GetCCc()))
	return t
}
