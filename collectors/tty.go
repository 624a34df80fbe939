package collectors

import (
	"errors"
	"fmt"
	"path"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// TTY collects terminals: both ends of pseudo terminals, /dev/tty, the console, virtual terminals, serial lines, and those
// the user declared external. Every open file has a tty_file_entry; the terminal itself, each end of a pair for itself, has
// an entry in tty-info.img (ttyinfo.go), and what waits in the queues of a pair goes to tty-data.img.
type TTY struct{}

// Device numbers of terminals (Documentation/admin-guide/devices.txt).
const (
	bsdMasterMajor = 2
	bsdSlaveMajor  = 3
	ttyMajor       = 4 // virtual terminals, from minor 64 on serial lines
	ttyAuxMajor    = 5 // /dev/tty, /dev/console, /dev/ptmx
	ptyMasterMajor = 128
	ptySlaveMajor  = 136 // /dev/pts/N
	usbSerialMajor = 188
	serialMajor    = 204
)

// Minors of ttyAuxMajor.
const (
	controllingMinor = 0
	consoleMinor     = 1
	ptmxMinor        = 2
)

// Match takes whatever is a terminal; which of them can be dumped, Collect says.
func (TTY) Match(p *Probe) bool {
	if p.mode() != unix.S_IFCHR || p.Flags&unix.O_PATH != 0 {
		return false
	}
	switch unix.Major(p.Stat.Rdev) {
	case bsdMasterMajor, bsdSlaveMajor, ttyMajor, ttyAuxMajor, ptyMasterMajor, ptySlaveMajor, serialMajor, usbSerialMajor:
		return true
	}
	return false
}

// terminalType says of what type the terminal is, and whether this is the master of a pair.
func (p *Probe) terminalType() (typ tty.TtyType, master bool) {
	major, minor := unix.Major(p.Stat.Rdev), unix.Minor(p.Stat.Rdev)
	switch {
	case major == ttyAuxMajor && minor == controllingMinor:
		return tty.TtyType_CTTY, false
	case major == ttyAuxMajor && minor == consoleMinor:
		return tty.TtyType_CONSOLE, false
	case major == ttyAuxMajor && minor == ptmxMinor, major == ptyMasterMajor:
		return tty.TtyType_PTY, true
	case major == ptySlaveMajor:
		return tty.TtyType_PTY, false
	case major == ttyMajor && minor < 64:
		return tty.TtyType_VT, false
	case major == bsdMasterMajor, major == bsdSlaveMajor:
		return tty.TtyType_UNKNOWN, major == bsdMasterMajor
	}
	return tty.TtyType_SERIAL, false
}

// Collect makes a tty_file_entry, one for the path, and one for the terminal when it is met first.
func (TTY) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	t, err := f.terminal(p, fd)
	if err != nil {
		return nil, err
	}
	e := &tty.TtyFileEntry{Id: proto.Uint32(id), TtyInfoId: t.info.Id, Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	if t.info.GetType() != tty.TtyType_EXT_TTY {
		regID := f.FreshID()
		f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(regID), Reg: p.ttyPath(regID)})
		e.RegfId = proto.Uint32(regID)
	}
	return &fdinfo.FileEntry{Tty: e}, nil
}

// terminal finds the terminal behind a descriptor, and asks it what it is like when it is met first.
func (f *Files) terminal(p *Probe, fd int) (*terminal, error) {
	typ, master := p.terminalType()
	key := ttyKey{typ: typ, rdev: p.Stat.Rdev, dev: p.Stat.Dev}
	session, group, hung := sessionOf(p, fd, master)
	pair := 0
	switch external := fmt.Sprintf("tty[%x:%x]", p.Stat.Rdev, p.Stat.Dev); {
	case f.env.External(external):
		key.typ, master = tty.TtyType_EXT_TTY, false
	case typ == tty.TtyType_UNKNOWN:
		return nil, p.Obstacle("a BSD pseudo terminal, of which the kernel does not tell the other end", "--external "+external+", if it is handed in on restore")
	case typ == tty.TtyType_CTTY:
		key.rdev, key.dev = uint64(session), 0 // it is another one in each session
	case typ == tty.TtyType_PTY:
		var err error
		if pair, err = p.ptyIndex(fd, master); err != nil {
			return nil, err
		}
		key.rdev, key.hung = uint64(pair), hung && !master
		if key.dev, err = p.devpts(master); err != nil {
			return nil, err
		}
	}
	id, err := f.ttys.number(key, master)
	if err != nil {
		return nil, p.Obstacle(err.Error(), "")
	}
	t := f.ttys.byID[id]
	if t == nil {
		t = &terminal{key: key, master: master, probe: p, info: p.ttyInfo(f.env, key.typ, id)}
		if key.typ == tty.TtyType_PTY {
			t.info.Pty = &tty.TtyPtyEntry{Index: proto.Uint32(uint32(pair))}
		}
		if !hung {
			if err := t.ask(fd); err != nil {
				return nil, err
			}
		}
		f.ttys.byID[id] = t
	}
	if t.session == 0 && session != 0 {
		t.session = session
		*t.info.Sid, *t.info.Pgrp = uint32(f.env.PIDNS.Inner(session)), uint32(f.env.PIDNS.Inner(group))
	}
	return t, nil
}

// sessionOf says whose controlling terminal it is and which group is in the foreground there, by their pids in the tool's
// namespace. A master tells; of others only the task that has the descriptor knows, if it is its own. One that hung up is
// nobody's.
func sessionOf(p *Probe, fd int, master bool) (session, group int, hung bool) {
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); errors.Is(err, unix.EIO) {
		return 0, 0, true
	}
	if master {
		session, err := unix.IoctlGetInt(fd, unix.TIOCGSID)
		if err != nil || session <= 0 {
			return 0, 0, false
		}
		if group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
			group = 0
		}
		return session, max(group, 0), false
	}
	st := p.Task.Stat
	controlling := unix.Major(p.Stat.Rdev) == ttyAuxMajor
	if p.Carrier != nil || st == nil || st.TTY == 0 || !controlling && uint32(st.TTY) != uint32(p.Stat.Rdev) {
		return 0, 0, false
	}
	return st.Session, max(st.TTYGroup, 0), false
}

// maxPTY is the highest number of a pair that images have room for.
const maxPTY = 1000

// ptyIndex is the N of /dev/pts/N.
func (p *Probe) ptyIndex(fd int, master bool) (n int, err error) {
	if master {
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return 0, fmt.Errorf("number of a pseudo terminal: %w", err)
		}
	} else {
		n = int(unix.Minor(p.Stat.Rdev))
	}
	if n > maxPTY {
		return 0, p.Obstacle(fmt.Sprintf("pseudo terminal %d, whose number is above %d", n, maxPTY), "")
	}
	return n, nil
}

// devpts says by its device in which instance of devpts the pair is. That of a master that was opened in another file
// system is where the kernel looked for it: in the directory pts beside the device.
func (p *Probe) devpts(master bool) (uint64, error) {
	if !master || p.FSType == unix.DEVPTS_SUPER_MAGIC {
		return p.Stat.Dev, nil
	}
	link, err := p.Link()
	if err != nil {
		return 0, err
	}
	name, _ := deleted(link)
	var st unix.Stat_t
	if err := unix.Fstatat(p.Task.Proc.Fd(), path.Join("root", path.Dir(name), "pts"), &st, 0); err != nil {
		return 0, p.Obstacle(fmt.Sprintf("a pseudo terminal opened at %s, and no instance of devpts is beside that: %v", link, err), "")
	}
	return st.Dev, nil
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

// slaveFlags open the slave of a pair beside those who have it.
const slaveFlags = unix.O_RDWR | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
