package restorers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"cryo/internal/image"
	"cryo/internal/pty"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
)

// ttySet is all terminals of a set, and what the tool holds of them while the tasks fetch them.
type ttySet struct {
	set      *Set
	shellJob bool
	handOver func(context.Context, *os.File) error // to who takes masters that stayed outside
	infos    map[uint32]*tty.TtyInfoEntry
	data     map[uint32][]byte // what waits at each
	files    []*ttyFile
	held     []int         // descriptors of the tool
	claims   map[int]claim // by the leader of the session
}

// ttysOf reads tty-info.img and tty-data.img.
func ttysOf(p *FilePlanner) (*ttySet, error) {
	type key struct{}
	return Shared(p, key{}, func() (*ttySet, error) {
		s := &ttySet{
			set: p.Set, shellJob: p.Opt.ShellJob, handOver: p.Opt.PtyMaster, infos: map[uint32]*tty.TtyInfoEntry{}, data: map[uint32][]byte{}, claims: map[int]claim{},
		}
		list, err := image.ReadOptional(p.Set.Source, image.TTYInfo, 0)
		if err != nil {
			return nil, err
		}
		for i, e := range list {
			if s.infos[e.GetId()] != nil {
				return nil, image.Errorf(image.TTYInfo.File(0), i, "id %d is there twice", e.GetId())
			}
			if e.GetType() == tty.TtyType_PTY && (e.GetPty() == nil || e.GetPty().GetIndex() > maxPTY) {
				return nil, image.Errorf(image.TTYInfo.File(0), i, "id %d is a pair without a number up to %d", e.GetId(), maxPTY)
			}
			s.infos[e.GetId()] = e
		}
		data, err := image.ReadOptional(p.Set.Source, image.TTYData, 0)
		for i, e := range data {
			if s.infos[e.GetTtyId()] == nil || len(e.GetData()) > pty.Limit {
				return nil, image.Errorf(image.TTYData.File(0), i, "%d bytes for id %d", len(e.GetData()), e.GetTtyId())
			}
			s.data[e.GetTtyId()] = e.GetData()
		}
		p.plan.after(Ready, ttyMaker{s})
		p.plan.after(Open, ttyCloser{s})
		p.plan.ttys = s
		return s, err
	})
}

// maxPTY is the highest number of a pair that is tried to get: as in the images of criu.
const maxPTY = 1000

// whole says whether the tree had both ends of a pair, or an end that hung up.
func (s *ttySet) whole(e *tty.TtyInfoEntry) bool {
	return e.GetId()&ttyMaster != 0 || e.GetTermios() == nil || s.infos[e.GetId()|ttyMaster] != nil
}

// pair is a pseudo terminal to make.
type pair struct {
	index         int
	ptmx          string // where masters are opened
	master, slave *tty.TtyInfoEntry
	files         []*ttyFile
	fd            int // of the master, -1 before
}

// ttyMaker opens the terminals.
type ttyMaker struct{ *ttySet }

func (s ttyMaker) fill(ctx context.Context, _ func(*Table, int) (int, error)) error {
	err := s.makeAll(ctx)
	if err != nil {
		err = errors.Join(err, s.close())
	}
	return err
}

func (s ttyMaker) makeAll(ctx context.Context) error {
	pairs := map[uint32]*pair{}
	for _, f := range s.files {
		switch {
		case f.how == ttyHanded:
			s.claim(f.info, f.tool)
		case f.how != ttyMade:
		case f.info.GetType() == tty.TtyType_PTY:
			id := f.info.GetId() &^ ttyMaster
			if pairs[id] == nil {
				pairs[id] = &pair{index: int(f.info.GetPty().GetIndex()), master: s.infos[id|ttyMaster], slave: s.infos[id], fd: -1}
			}
			pairs[id].files = append(pairs[id].files, f)
		default:
			if err := s.simple(f); err != nil {
				return err
			}
		}
	}
	byPtmx := map[string][]*pair{}
	for _, p := range pairs {
		p.ptmx = p.masterName()
		byPtmx[p.ptmx] = append(byPtmx[p.ptmx], p)
	}
	for _, ptmx := range slices.Sorted(maps.Keys(byPtmx)) {
		group := byPtmx[ptmx]
		slices.SortFunc(group, func(a, b *pair) int { return cmp.Compare(a.index, b.index) })
		if err := s.masters(ctx, ptmx, group); err != nil {
			return err
		}
		for _, p := range group {
			if err := s.complete(ctx, p); err != nil {
				return fmt.Errorf("pseudo terminal %d: %w", p.index, err)
			}
		}
	}
	return nil
}

// masterName is where the master was opened, or for one that nobody has any more, where it can be: every instance of
// devpts has a file for it.
func (p *pair) masterName() string {
	for _, f := range p.files {
		if f.info == p.master {
			return f.name
		}
	}
	return path.Join(path.Dir(p.files[0].name), "ptmx")
}

// masters opens masters until every pair has the one with its number. The kernel gives out the lowest free number, so
// those in between are held until then.
func (s ttyMaker) masters(ctx context.Context, ptmx string, group []*pair) error {
	var others []int
	defer func() {
		for _, fd := range others {
			unix.Close(fd)
		}
	}()
	missing := map[int]*pair{}
	for _, p := range group {
		if missing[p.index] != nil {
			return fmt.Errorf("%s: two pseudo terminals of the set have number %d", ptmx, p.index)
		}
		missing[p.index] = p
	}
	for highest := group[len(group)-1].index; len(missing) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		fd, err := openTTY(ptmx, unix.O_RDWR, unix.Mkdev(5, 2))
		if err != nil {
			return err
		}
		index, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("number of a pseudo terminal of %s: %w", ptmx, err)
		}
		if p := missing[index]; p != nil {
			p.fd = fd
			s.held = append(s.held, fd)
			delete(missing, index)
			continue
		}
		others = append(others, fd)
		if index > highest {
			return fmt.Errorf("pseudo terminal %d of %s is somebody else's now: restore where that number is free", slices.Min(slices.Collect(maps.Keys(missing))), ptmx)
		}
	}
	return nil
}

// openTTY opens a terminal by its name; it must be the device it was.
func openTTY(name string, flags int, rdev uint64) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
	handle, err := unix.Openat2(unix.AT_FDCWD, name, how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(handle)
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return -1, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || rdev != 0 && st.Rdev != rdev {
		return -1, fmt.Errorf("%s is not the terminal it was", name)
	}
	fd, err := unix.Open(link(handle), flags|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// statusFlags are the flags of an open terminal that matter.
func (f *ttyFile) statusFlags() int {
	return int(f.flags & (unix.O_ACCMODE | unix.O_NONBLOCK | unix.O_APPEND))
}

// simple opens a terminal that is a piece of hardware, and puts its settings on.
func (s ttyMaker) simple(f *ttyFile) error {
	fd, err := openTTY(f.name, f.statusFlags()|unix.O_NONBLOCK, uint64(f.info.GetRdev())) // a serial line may wait for its carrier
	if err != nil {
		return err
	}
	f.tool = fd
	s.held = append(s.held, fd)
	if err := setFlags(fd, f.statusFlags()); err != nil {
		return err
	}
	s.claim(f.info, fd)
	if err := applySettings(fd, f.info); err != nil || !f.info.GetExclusive() {
		return err
	}
	return unix.IoctlSetInt(fd, unix.TIOCEXCL, 0)
}

func setFlags(fd, flags int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags); err != nil {
		return fmt.Errorf("flags of a terminal: %w", err)
	}
	return nil
}

// complete makes of a master the pair that was: slaves, queues, settings.
func (s ttyMaker) complete(ctx context.Context, p *pair) error {
	if err := unix.IoctlSetPointerInt(p.fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	for _, f := range p.files {
		if f.info == p.master {
			f.tool = p.fd
			continue
		}
		fd, err := openSlave(p.fd, f.name, f.statusFlags())
		if err != nil {
			return err
		}
		f.tool = fd
		s.held = append(s.held, fd)
	}
	if err := s.queues(p); err != nil {
		return err
	}
	if p.master == nil && s.whole(p.slave) { // all that is left is a slave that hung up, which this does to it
		s.held = slices.DeleteFunc(s.held, func(fd int) bool { return fd == p.fd })
		return unix.Close(p.fd)
	}
	for _, f := range p.files {
		if f.info != p.master {
			if err := own(f.tool, f.info, f.mode); err != nil {
				return err
			}
		}
	}
	if err := s.modes(p); err != nil || p.master != nil {
		return err
	}
	return s.give(ctx, p.fd)
}

// give hands a master over.
func (s ttyMaker) give(ctx context.Context, master int) error {
	fd, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("hand its master over: %w", err)
	}
	f := os.NewFile(uintptr(fd), "master of a terminal")
	defer f.Close()
	if err := s.handOver(ctx, f); err != nil {
		return fmt.Errorf("hand its master over: %w", err)
	}
	return nil
}

// openSlave opens the slave by its name, if that leads to it, and otherwise where the kernel has it.
func openSlave(master int, name string, flags int) (int, error) {
	fd, err := pty.OpenSlave(master, flags|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open the slave: %w", err)
	}
	have, err := os.Readlink(link(fd))
	if err == nil && have == strings.TrimSuffix(name, " (deleted)") {
		return fd, nil
	}
	var st unix.Stat_t
	var other unix.Stat_t
	if unix.Fstat(fd, &st) != nil || unix.Stat(name, &other) != nil || st.Dev != other.Dev || st.Ino != other.Ino {
		return fd, nil
	}
	if named, err := openTTY(name, flags, st.Rdev); err == nil {
		unix.Close(fd)
		return named, nil
	}
	return fd, nil
}

// queues puts in what waited at both ends, and leaves behind a slave that was closed as one that was.
func (s ttyMaker) queues(p *pair) error {
	var q pty.Queued
	if p.master != nil {
		q.AtMaster, q.AtSlave = s.data[p.master.GetId()], s.data[p.master.GetId()&^ttyMaster]
	}
	abandoned := p.master != nil && p.slave != nil && p.slave.GetTermios() == nil
	if q.Empty() && !abandoned {
		return nil
	}
	fd, err := pty.OpenSlave(p.fd, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the slave: %w", err)
	}
	defer unix.Close(fd)
	if t := p.master.GetTermios(); t != nil {
		if err := unix.IoctlSetTermios(p.fd, unix.TCSETS, termios(t)); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
	}
	return pty.Pair{Master: p.fd, Slave: fd}.Fill(q)
}

// modes puts on what a pair is set to, last what keeps others away.
func (s ttyMaker) modes(p *pair) error {
	s.claim(p.master, p.fd)
	for _, end := range []*tty.TtyInfoEntry{p.master, p.slave} {
		if end == nil || end.GetTermios() == nil {
			continue
		}
		s.claim(end, p.fd)
		if err := applySettings(p.fd, end); err != nil { // of the slave too, by way of the master
			return err
		}
	}
	for _, f := range p.files {
		if f.info != p.master && f.info.GetExclusive() {
			if err := unix.IoctlSetInt(f.tool, unix.TIOCEXCL, 0); err != nil {
				return fmt.Errorf("exclusive mode: %w", err)
			}
		}
		if f.info == p.master {
			if err := setFlags(p.fd, f.statusFlags()); err != nil {
				return err
			}
		}
	}
	set := []struct {
		on      bool
		request uint
		what    string
	}{{p.master.GetPacketMode(), unix.TIOCPKT, "packet mode"}, {p.master.GetLocked(), unix.TIOCSPTLCK, "lock"}}
	for _, m := range set {
		if !m.on {
			continue
		}
		if err := unix.IoctlSetPointerInt(p.fd, m.request, 1); err != nil {
			return fmt.Errorf("%s: %w", m.what, err)
		}
	}
	if p.master.GetExclusive() {
		return unix.IoctlSetInt(p.fd, unix.TIOCEXCL, 0)
	}
	return nil
}

// applySettings puts the settings of an entry on a terminal.
func applySettings(fd int, e *tty.TtyInfoEntry) error {
	if t := e.GetTermios(); t != nil {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, termios(t)); err != nil {
			return fmt.Errorf("settings of a terminal: %w", err)
		}
	}
	if w := e.GetWinsize(); w != nil {
		size := &unix.Winsize{Row: uint16(w.GetWsRow()), Col: uint16(w.GetWsCol()), Xpixel: uint16(w.GetWsXpixel()), Ypixel: uint16(w.GetWsYpixel())}
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size); err != nil {
			return fmt.Errorf("size of a terminal: %w", err)
		}
	}
	if t := e.GetTermiosLocked(); t != nil && *termios(t) != (unix.Termios{Ispeed: t.GetCIspeed(), Ospeed: t.GetCOspeed()}) {
		if err := unix.IoctlSetTermios(fd, unix.TIOCSLCKTRMIOS, termios(t)); err != nil {
			return fmt.Errorf("locks of a terminal: %w", err)
		}
	}
	return nil
}

// own gives a slave its owner and its mode.
func own(fd int, e *tty.TtyInfoEntry, mode *uint32) error {
	if e.Uid != nil && e.Gid != nil {
		if err := unix.Fchown(fd, int(e.GetUid()), int(e.GetGid())); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	if mode != nil {
		if err := unix.Fchmod(fd, *mode&0o7777); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	return nil
}

// ttyCloser closes what the tool has opened, when the tasks have it.
type ttyCloser struct{ *ttySet }

func (s ttyCloser) fill(context.Context, func(*Table, int) (int, error)) error { return s.close() }

func (s *ttySet) close() error {
	var errs []error
	for _, fd := range s.held {
		errs = append(errs, unix.Close(fd))
	}
	s.held = nil
	return errors.Join(errs...)
}
