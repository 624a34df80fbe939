package collectors

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cryo/internal/procfs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Probe is what is known of one file before it is decided what kind it is: all that is cheap to ask, asked once.
type Probe struct {
	Task *Task
	// FD is the descriptor, or -1 for a file that only a link of /proc/PID names.
	FD int
	// Entry is that link, where FD is -1: "exe", "map_files/...".
	Entry string
	Stat  unix.Stat_t
	// FSType is the filesystem's magic number.
	FSType int64
	// Info is what the descriptor's fdinfo says, close-on-exec left out; Flags are the open flags without O_CLOEXEC.
	Info  *procfs.FDInfo
	Flags uint32
	Owner *fown.FownEntry
	// Domain is the address family of a socket, 0 for other files.
	Domain int
	// Options are what every socket has; nil, and the reason in optionsErr, where they cannot be told.
	Options    *sk_opts.SkOptsEntry
	optionsErr error
	// Carrier is the socket in whose queue the file waits, for one that was sent to it (SCM_RIGHTS); Task and FD are the
	// tool's own then.
	Carrier *Probe

	silent bool // nothing can be asked of the file any more

	link    string
	gotLink bool
	info    procfs.FDInfo // what Info is where fdinfo was not read

	answer    any // what an Asker of the file's kind has returned
	answerErr error
}

// entry is the link below /proc/PID that leads to the file.
func (p *Probe) entry() string {
	if p.FD >= 0 {
		return "fd/" + strconv.Itoa(p.FD)
	}
	return p.Entry
}

// Link is the path the kernel prints for the file; read on first use.
func (p *Probe) Link() (string, error) {
	if !p.gotLink {
		link, err := p.Task.Proc.Readlink(p.entry())
		if err != nil {
			return "", err
		}
		p.link, p.gotLink = link, true
	}
	return p.link, nil
}

// mount is the number of the mount the file is on.
func (p *Probe) mount() (int, error) {
	if p.Info != nil && p.Info.MntID >= 0 {
		return p.Info.MntID, nil
	}
	if p.FD >= 0 {
		info, err := p.Task.Proc.FDInfo(p.FD)
		if err != nil {
			return -1, err
		}
		return info.MntID, nil
	}
	var stx unix.Statx_t
	if err := unix.Statx(p.Task.Proc.Fd(), p.Entry, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &stx); err != nil {
		return -1, fmt.Errorf("statx %s: %w", p.Task.Proc.Path(p.Entry), err)
	}
	return int(stx.Mnt_id), nil
}

// Dup returns a descriptor of the tool's own for the same open file description. The caller closes it. A file that is
// no descriptor of the task is opened with O_PATH.
func (p *Probe) Dup() (int, error) {
	if p.FD < 0 {
		return p.Task.Proc.Open(p.Entry, unix.O_PATH)
	}
	return p.Task.getFD(p.FD)
}

// ownFD is a descriptor of the tool's own, made when it is first wanted: most sockets have said all when they were asked,
// many at a time, and need none again.
type ownFD struct {
	probe *Probe
	fd    int
}

func notOwned(p *Probe) ownFD { return ownFD{p, -1} }

func (o *ownFD) get() (fd int, err error) {
	if o.fd < 0 {
		o.fd, err = o.probe.Dup()
	}
	return o.fd, err
}

func (o *ownFD) close() {
	if o.fd >= 0 {
		unix.Close(o.fd)
	}
}

// Reopen opens the file anew by its link, whatever its path has become; flags as for open(2).
func (p *Probe) Reopen(flags int) (int, error) { return p.Task.Proc.Open(p.entry(), flags) }

// Where names the file's place in its task for messages.
func (p *Probe) Where() string {
	if p.Carrier != nil {
		return "descriptor in flight to " + p.Carrier.Where()
	}
	if p.FD >= 0 {
		return "fd " + strconv.Itoa(p.FD)
	}
	return p.Entry
}

// Obstacle makes an obstacle of the file.
func (p *Probe) Obstacle(what, remedy string) Obstacle {
	return Obstacle{Pid: p.holder().Pid, Where: p.Where(), What: what, Remedy: remedy}
}

// holder is the task that has the file, or the socket it is on the way to.
func (p *Probe) holder() *Task {
	for p.Carrier != nil {
		p = p.Carrier
	}
	return p.Task
}

// mode is the file type.
func (p *Probe) mode() uint32 { return p.Stat.Mode & unix.S_IFMT }

// getFD duplicates a descriptor of the task (pidfd_getfd, Linux 5.6).
func (t *Task) getFD(fd int) (int, error) {
	pidfd, err := t.Pidfd()
	if err != nil {
		return -1, err
	}
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EMFILE) {
		return -1, fmt.Errorf("task %d, fd %d: the tool has too many open files (raise its limit with ulimit -n)", t.Pid, fd)
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of task %d, fd %d: %w", t.Pid, fd, err)
	}
	return own, nil
}

// askFS fills FSType, and Domain and Options. An open socket has no other filesystem than its own, so it is not asked; a handle
// (O_PATH) on the name of one has.
func (p *Probe) askFS(fd int) (err error) {
	if p.mode() == unix.S_IFSOCK && p.FD >= 0 && p.Flags&unix.O_PATH == 0 {
		p.FSType = unix.SOCKFS_MAGIC
		if p.Domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return fmt.Errorf("domain of a socket of task %d, %s: %w", p.Task.Pid, p.Where(), err)
		}
		p.Options, p.optionsErr = socketOptions(fd, p.Domain)
		return nil
	}
	if known, ok := p.Task.fsTypes.Load(p.Stat.Dev); ok {
		p.FSType = known.(int64)
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("fstatfs of task %d, %s: %w", p.Task.Pid, p.Where(), err)
	}
	p.FSType = int64(fs.Type)
	p.Task.fsTypes.Store(p.Stat.Dev, p.FSType)
	return nil
}

// noOwner is the entry of a file that signals nobody, as most.
func noOwner() *fown.FownEntry {
	return &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
}

// nobody is the entry of all files that signal nobody. It is never changed.
var nobody = noOwner()

// owner asks who is signalled when the file becomes ready (fcntl F_SETOWN, F_SETSIG). The pid is in the tool's
// namespace.
func owner(fd int, flags uint32) (*fown.FownEntry, error) {
	if flags&unix.O_PATH != 0 {
		return nobody, nil // such a file has no owner, and no signal
	}
	sig, err := unix.FcntlInt(uintptr(fd), unix.F_GETSIG, 0)
	if err != nil {
		return nil, err
	}
	typ, pid, err := getOwnEx(fd)
	if sig == 0 && pid == 0 || err != nil {
		return nobody, err
	}
	o := noOwner()
	*o.Signum = uint32(sig)
	if pid == 0 {
		return o, nil
	}
	*o.PidType, *o.Pid = uint32(typ), uint32(pid)
	uids, err := getOwnerUIDs(fd)
	if err != nil {
		return nil, err
	}
	*o.Uid, *o.Euid = uids[0], uids[1]
	return o, nil
}

// deleted says whether a link's text ends as the kernel marks a file without a name, and the text before it.
func deleted(link string) (string, bool) { return strings.CutSuffix(link, " (deleted)") }
