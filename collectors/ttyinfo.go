package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cryo/internal/image"
	"cryo/internal/poll"
	"cryo/internal/pty"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// terminals is what is known of the terminals that files are open on.
type terminals struct {
	byID    map[uint32]*terminal
	indices map[ttyKey]uint32
	taken   map[uint32]bool
	queues  []*tty.TtyDataEntry
}

// terminal is one of them, or one end of a pair.
type terminal struct {
	key     ttyKey
	master  bool
	info    *tty.TtyInfoEntry
	probe   *Probe // a descriptor on it
	session int    // by its pid in the tool's namespace
}

// ttyKey tells terminals apart. Both ends of a pair have the same.
type ttyKey struct {
	typ       tty.TtyType
	rdev, dev uint64 // of a pair the number and the instance of devpts
	hung      bool
}

func newTerminals() terminals {
	return terminals{byID: map[uint32]*terminal{}, indices: map[ttyKey]uint32{}, taken: map[uint32]bool{}}
}

// firstIndex is the index that the first terminal of a type has in images, where criu looks for it.
var firstIndex = map[tty.TtyType]uint32{
	tty.TtyType_CONSOLE: 1002, tty.TtyType_VT: 1004, tty.TtyType_CTTY: 1006, tty.TtyType_SERIAL: 1010, tty.TtyType_EXT_TTY: 1013,
}

// maxIndex is what criu reads.
const maxIndex = 1087

// number is the id of a terminal: twice an index, plus one for a master. Pairs have their number as index, as long as
// there are not two of the same number, in different instances of devpts.
func (t *terminals) number(key ttyKey, master bool) (uint32, error) {
	index, ok := t.indices[key]
	if !ok {
		if index = uint32(key.rdev); key.typ != tty.TtyType_PTY {
			index = firstIndex[key.typ]
		}
		for spare := uint32(maxIndex); t.taken[index]; spare-- {
			if index = spare; spare == 0 {
				return 0, errors.New("one terminal too many")
			}
		}
		t.indices[key], t.taken[index] = index, true
	}
	if master {
		return index<<1 | 1, nil
	}
	return index << 1, nil
}

// ttyInfo is an entry without settings: all that is known of a terminal that hung up.
func (p *Probe) ttyInfo(env *Env, typ tty.TtyType, id uint32) *tty.TtyInfoEntry {
	return &tty.TtyInfoEntry{
		Id: proto.Uint32(id), Type: typ.Enum(), Locked: proto.Bool(false), Exclusive: proto.Bool(false), PacketMode: proto.Bool(false),
		Sid: proto.Uint32(0), Pgrp: proto.Uint32(0), Rdev: proto.Uint32(uint32(p.Stat.Rdev)), Dev: proto.Uint32(uint32(p.Stat.Dev)),
		Uid: proto.Uint32(p.Stat.Uid), Gid: proto.Uint32(p.Stat.Gid),
	}
}

// ask reads the settings. Those of a master are its slave's. What a driver does not know is not set.
func (t *terminal) ask(fd int) error {
	set, err := unix.IoctlGetTermios(fd, unix.TCGETS)
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
	t.info.Termios, t.info.TermiosLocked = termiosEntry(set), termiosEntry(locked)
	t.info.Winsize = &tty.WinsizeEntry{
		WsRow: proto.Uint32(uint32(size.Row)), WsCol: proto.Uint32(uint32(size.Col)),
		WsXpixel: proto.Uint32(uint32(size.Xpixel)), WsYpixel: proto.Uint32(uint32(size.Ypixel)),
	}
	modes := []struct {
		request uint
		to      *bool
		pair    bool
	}{{unix.TIOCGEXCL, t.info.Exclusive, false}, {unix.TIOCGPKT, t.info.PacketMode, true}, {unix.TIOCGPTLCK, t.info.Locked, true}}
	for _, m := range modes {
		if m.pair && !t.master {
			continue
		}
		n, err := unix.IoctlGetInt(fd, m.request)
		if err != nil && !errors.Is(err, unix.ENOTTY) {
			return fmt.Errorf("modes of a terminal: %w", err)
		}
		*m.to = err == nil && n != 0
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

// finishTTYs says of which terminals the other end or the session is outside of the tree, and stores what waits in the
// queues of the others.
func (f *Files) finishTTYs() error {
	for _, id := range slices.Sorted(maps.Keys(f.ttys.byID)) {
		if err := f.insideTTY(f.ttys.byID[id]); err != nil {
			if err := f.note(f.ttys.byID[id].probe, err); err != nil {
				return err
			}
		}
	}
	if f.env.DryRun || f.env.Obstacles.Err() != nil {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(f.ttys.byID)) {
		if t := f.ttys.byID[id]; t.master {
			if err := f.queuesOf(t, f.ttys.byID[id-1]); err != nil {
				return fmt.Errorf("%s: %w", t.probe.Where(), err)
			}
		}
	}
	return nil
}

// insideTTY refuses a terminal that needs more than the tree, unless the user allows it.
func (f *Files) insideTTY(t *terminal) error {
	if f.env.Options.ShellJob || t.info.GetType() == tty.TtyType_EXT_TTY {
		return nil
	}
	const remedy = "--shell-job, if the tree was started from a shell and is restored from one"
	switch id := t.info.GetId(); {
	case t.info.GetType() == tty.TtyType_PTY && !t.master && t.info.Termios != nil && f.ttys.byID[id|1] == nil && !f.env.Options.OrphanPtsMaster:
		return t.probe.Obstacle("a terminal, whose other end is outside of the tree", remedy)
	case t.session != 0 && !f.env.InTree(t.session):
		return t.probe.Obstacle(fmt.Sprintf("a terminal, which belongs to session %d outside of the tree", t.session), remedy)
	}
	return nil
}

// queuesOf stores what waits at both ends of a pair. Of a slave that nobody has open any more an entry without settings
// tells: then the program at the master is yet to learn of the end, as soon as it has read what is left.
func (f *Files) queuesOf(master, slave *terminal) (err error) {
	fd, err := master.probe.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ready, err := poll.Now(fd, 0)
	if err != nil {
		return fmt.Errorf("poll of a terminal: %w", err)
	}
	abandoned := ready&unix.POLLHUP != 0
	if slave == nil && !abandoned {
		return nil // whoever is there to write outside, or nobody yet
	}
	if master.info.GetLocked() { // it keeps us out as well
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return fmt.Errorf("lock of a terminal: %w", err)
		}
		defer func() { err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 1)) }()
	}
	other := -1
	if slave != nil {
		other, err = slave.probe.Reopen(slaveFlags)
	} else if other, err = pty.OpenSlave(fd, slaveFlags); err == nil {
		info := master.probe.ttyInfo(f.env, tty.TtyType_PTY, master.info.GetId()&^1)
		info.Pty, info.Rdev = master.info.Pty, proto.Uint32(uint32(unix.Mkdev(ptySlaveMajor, master.info.GetPty().GetIndex())))
		f.ttys.byID[info.GetId()] = &terminal{key: master.key, info: info, probe: master.probe}
	}
	if err != nil {
		return fmt.Errorf("open the slave of a terminal: %w", err)
	}
	defer unix.Close(other)
	q, err := pty.Pair{Master: fd, Slave: other}.Copy()
	if err != nil {
		return err
	}
	for id, data := range map[uint32][]byte{master.info.GetId(): q.AtMaster, master.info.GetId() &^ 1: q.AtSlave} {
		if len(data) > 0 {
			f.ttys.queues = append(f.ttys.queues, &tty.TtyDataEntry{TtyId: proto.Uint32(id), Data: data})
		}
	}
	return nil
}

// writeTTYs writes tty-info.img and tty-data.img, if there is something for them.
func (f *Files) writeTTYs() error {
	if len(f.ttys.byID) == 0 {
		return nil
	}
	var list []*tty.TtyInfoEntry
	for _, id := range slices.Sorted(maps.Keys(f.ttys.byID)) {
		list = append(list, f.ttys.byID[id].info)
	}
	err := image.Write(f.env.Images, image.TTYInfo, 0, list...)
	if len(f.ttys.queues) > 0 {
		slices.SortFunc(f.ttys.queues, func(a, b *tty.TtyDataEntry) int { return int(a.GetTtyId()) - int(b.GetTtyId()) })
		err = errors.Join(err, image.Write(f.env.Images, image.TTYData, 0, f.ttys.queues...))
	}
	return err
}
