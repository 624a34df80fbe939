package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// TTY collects terminals whose other end is outside of the tree: the pseudo terminal of a job that was started from a
// shell (--shell-job), /dev/tty of such a job, and terminals the user declared external. The terminal itself has an entry
// in tty-info.img.
type TTY struct{}

// Device numbers of terminals (Documentation/admin-guide/devices.txt).
const (
	ttyMajor       = 4   // consoles and serial lines
	ttyAuxMajor    = 5   // minor 0 is /dev/tty
	ptySlaveMajor  = 136 // /dev/pts/N
	usbSerialMajor = 188
	serialMajor    = 204
)

// Match takes whatever is a terminal; which of them can be dumped, Collect says.
func (TTY) Match(p *Probe) bool {
	if p.mode() != unix.S_IFCHR || p.Flags&unix.O_PATH != 0 {
		return false
	}
	switch unix.Major(p.Stat.Rdev) {
	case ttyMajor, ttyAuxMajor, ptySlaveMajor, serialMajor, usbSerialMajor:
		return true
	}
	return false
}

func (p *Probe) controlling() bool {
	return unix.Major(p.Stat.Rdev) == ttyAuxMajor && unix.Minor(p.Stat.Rdev) == 0
}

// Numbers of terminals in images: twice the index, plus one for a master. Indices beyond those of pseudo terminals stand
// for other kinds.
const (
	maxPTY        = 1000
	ctlIndex      = 1006
	externalIndex = 1012
	maxExternal   = 64
)

// Collect makes a tty_file_entry, one for the path, and one for the terminal when it is met first.
func (TTY) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	info := &tty.TtyInfoEntry{
		Type: tty.TtyType_PTY.Enum(), Locked: proto.Bool(false), Exclusive: proto.Bool(false), PacketMode: proto.Bool(false),
		Sid: proto.Uint32(0), Pgrp: proto.Uint32(0), Rdev: proto.Uint32(uint32(p.Stat.Rdev)), Dev: proto.Uint32(uint32(p.Stat.Dev)),
		Uid: proto.Uint32(p.Stat.Uid), Gid: proto.Uint32(p.Stat.Gid),
	}
	index := 0
	switch {
	case f.env.External(fmt.Sprintf("tty[%x:%x]", p.Stat.Rdev, p.Stat.Dev)):
		info.Type = tty.TtyType_EXT_TTY.Enum()
		if index = externalIndex + 1 + len(f.ttys); index > externalIndex+maxExternal {
			return nil, p.Obstacle("one external terminal too many", "")
		}
	case unix.Major(p.Stat.Rdev) != ptySlaveMajor && !p.controlling():
		return nil, p.Obstacle("a terminal of a kind that cannot be dumped yet", fmt.Sprintf("--external tty[%x:%x], if it is handed in on restore", p.Stat.Rdev, p.Stat.Dev))
	case !f.env.Options.ShellJob:
		return nil, p.Obstacle("a terminal, whose other end is outside of the tree", "--shell-job, if the tree was started from a shell and is restored from one")
	case p.controlling():
		info.Type, index = tty.TtyType_CTTY.Enum(), ctlIndex
	default:
		var err error
		if index, err = p.ptyIndex(); err != nil {
			return nil, err
		}
		info.Pty = &tty.TtyPtyEntry{Index: proto.Uint32(uint32(index))}
	}
	info.Id = proto.Uint32(uint32(index) << 1)
	e := &tty.TtyFileEntry{Id: proto.Uint32(id), TtyInfoId: info.Id, Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	if info.GetType() != tty.TtyType_EXT_TTY {
		regID := f.FreshID()
		f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(regID), Reg: p.ttyPath(regID)})
		e.RegfId = proto.Uint32(regID)
	}
	if f.ttys[info.GetId()] == nil {
		if err := p.ttyState(info); err != nil {
			return nil, err
		}
		f.ttys[info.GetId()] = info
	}
	return &fdinfo.FileEntry{Tty: e}, nil
}

// ptyIndex is the N of /dev/pts/N.
func (p *Probe) ptyIndex() (int, error) {
	link, err := p.Link()
	if err != nil {
		return 0, err
	}
	name, _ := deleted(link)
	n, err := strconv.Atoi(path.Base(name))
	if err != nil || n < 0 || n > maxPTY {
		return 0, p.Obstacle(fmt.Sprintf("a terminal whose path (%s) does not tell its number", link), "")
	}
	return n, nil
}

// ttyPath names the file. It is not remapped: the kernel makes these names.
func (p *Probe) ttyPath(id uint32) *regfile.RegFileEntry {
	link, _ := p.Link()
	name, _ := deleted(link)
	return &regfile.RegFileEntry{
		Id: proto.Uint32(id), Name: proto.String(name), Flags: proto.Uint32(p.Flags), Pos: proto.Uint64(uint64(p.Info.Pos)),
		Fown: p.Owner, Mode: proto.Uint32(p.Stat.Mode),
	}
}

// ttyState reads the settings of a terminal, and whose controlling terminal it is. One that hung up has none.
func (p *Probe) ttyState(info *tty.TtyInfoEntry) error {
	if st := p.Task.Stat; st.TTY != 0 && (p.controlling() || uint32(st.TTY) == uint32(p.Stat.Rdev)) {
		*info.Sid = uint32(p.Task.Sid)
		if st.TTYGroup > 0 {
			*info.Pgrp = uint32(st.TTYGroup)
		}
	}
	fd, err := p.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if errors.Is(err, unix.EIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("settings of a terminal: %w", err)
	}
	locked, err := unix.IoctlGetTermios(fd, unix.TIOCGLCKTRMIOS)
	if err != nil {
		return fmt.Errorf("locks of a terminal: %w", err)
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return fmt.Errorf("size of a terminal: %w", err)
	}
	info.Termios, info.TermiosLocked = termiosEntry(set), termiosEntry(locked)
	info.Winsize = &tty.WinsizeEntry{
		WsRow: proto.Uint32(uint32(size.Row)), WsCol: proto.Uint32(uint32(size.Col)),
		WsXpixel: proto.Uint32(uint32(size.Xpixel)), WsYpixel: proto.Uint32(uint32(size.Ypixel)),
	}
	return nil
}

func termiosEntry(t *unix.Termios) *tty.TermiosEntry {
	e := &tty.TermiosEntry{
		CIflag: &t.Iflag, COflag: &t.Oflag, CCflag: &t.Cflag, CLflag: &t.Lflag, CLine: proto.Uint32(uint32(t.Line)),
		CIspeed: &t.Ispeed, COspeed: &t.Ospeed,
	}
	// As many words as there are control characters, but four characters in each: so criu writes and reads it.
	raw := make([]byte, 4*len(t.Cc))
	copy(raw, t.Cc[:])
	for ; len(raw) > 0; raw = raw[4:] {
		e.CCc = append(e.CCc, binary.NativeEndian.Uint32(raw))
	}
	return e
}

// writeTTYs writes tty-info.img, if there is a terminal.
func (f *Files) writeTTYs() error {
	if len(f.ttys) == 0 {
		return nil
	}
	var list []*tty.TtyInfoEntry
	for _, id := range slices.Sorted(maps.Keys(f.ttys)) {
		list = append(list, f.ttys[id])
	}
	return image.Write(f.env.Images, image.TTYInfo, 0, list...)
}
