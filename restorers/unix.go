package restorers

import (
	"fmt"
	"path"
	"strings"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
)

// Unix restores unix sockets.
//
// The task that owns a socket makes it at Open; of a connected pair it is the first owner of the two who makes both.
// Then the tool gives them their names (unixbind.go), as that takes a look at directories as they were and files that
// are there for a moment only. Listening (Pair) and connecting to a listener (Fill) is up to the owner again, for the
// kernel notes whose credentials the other side is to see. What waits in queues is sent by the tool, which then connects
// datagram sockets (unixfill.go). Options and shutdowns come last. Which way each socket goes is decided in unixrole.go.
type Unix struct{}

// States of a socket.
const (
	unixEstablished = 1
	unixClosed      = 7
	unixListen      = 10
)

// Flags of an entry (uflags).
const (
	unixExternal = 1 << 0 // stands for a socket outside: a name to connect to
	unixService  = 1 << 1 // was connected to the service that made the dump; gets its answer
	unixCallback = 1 << 2 // is made by a plugin of criu
)

// unixSet is all unix sockets of a set.
type unixSet struct {
	entries   map[uint32]*sk_unix.UnixSkEntry // by inode number
	listeners map[string]bool                 // names of all that listen
	planned   map[uint32]*unixFile            // by inode number
	order     []*unixFile
	queues    *skQueues
	paths     *Paths
	plan      *FilePlan
	bufs      [2]uint32              // sizes of the buffers of a fresh socket
	byPeer    map[uint32][]*unixFile // planned ones, by the inode number of the socket they are connected to
	byPID     map[int]*Table         // see tables
}

// unixFile is a socket that is to be made.
type unixFile struct {
	*sk_unix.UnixSkEntry
	set  *unixSet
	role unixRole
	tool int // descriptor of the tool that is handed out, -1: none

	made    int    // flags it has been made with
	table   *Table // whose task made both ends, for unixMaker and unixFake
	other   int    // the number of the other end there, from Open to Attach
	handle  int    // the tool's handle on the file it is bound to, for others to connect; -1: none
	touched bool   // its buffers are not those of a fresh socket any more
}

// unixAll reads the entries of all unix sockets.
func unixAll(p *FilePlanner) (*unixSet, error) {
	type key struct{}
	return Shared(p, key{}, func() (*unixSet, error) {
		u := &unixSet{listeners: map[string]bool{}, entries: map[uint32]*sk_unix.UnixSkEntry{}, planned: map[uint32]*unixFile{}, byPeer: map[uint32][]*unixFile{},
			paths: p.Paths, plan: p.plan}
		for _, e := range p.Set.Files {
			if e.GetType() != fdinfo.FdTypes_UNIXSK {
				continue
			}
			us := e.GetUsk()
			if err := checkUnix(us); err != nil {
				return nil, image.Errorf(image.Files.File(0), -1, "id %d: %w", e.GetId(), err)
			}
			if u.entries[us.GetIno()] != nil {
				return nil, image.Errorf(image.Files.File(0), -1, "id %d: ino %d is there twice", e.GetId(), us.GetIno())
			}
			u.entries[us.GetIno()] = us
			if us.GetState() == unixListen && us.GetUflags()&unixExternal == 0 {
				u.listeners[string(us.GetName())] = true
			}
		}
		var err error
		if u.queues, err = planQueues(p); err != nil {
			return nil, err
		}
		p.plan.after(Open, unixBinder{u})
		p.plan.after(Fill, unixConnector{u})
		u.bufs, err = freshBuffers()
		return u, err
	})
}

// freshBuffers are the sizes of the buffers that the kernel gives to a new socket.
func freshBuffers() (sizes [2]uint32, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sizes, fmt.Errorf("make a unix socket: %w", err)
	}
	defer unix.Close(fd)
	for i, option := range [2]int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil {
			return sizes, fmt.Errorf("size of a socket's buffer: %w", err)
		}
		sizes[i] = uint32(n)
	}
	return sizes, nil
}

// checkUnix refuses what no socket can be.
func checkUnix(e *sk_unix.UnixSkEntry) error {
	const maxName = 108 // sun_path
	switch {
	case e == nil:
		return fmt.Errorf("it has no usk")
	case e.GetType() != unix.SOCK_STREAM && e.GetType() != unix.SOCK_DGRAM && e.GetType() != unix.SOCK_SEQPACKET:
		return fmt.Errorf("type %d is none of a unix socket", e.GetType())
	case e.GetState() != unixEstablished && e.GetState() != unixClosed && e.GetState() != unixListen:
		return fmt.Errorf("state %d is none of a unix socket", e.GetState())
	case e.GetShutdown() < 0 || e.GetShutdown() > 3:
		return fmt.Errorf("shutdown %d is not known", e.GetShutdown())
	case len(e.GetName()) > maxName+1:
		return fmt.Errorf("a name of %d bytes", len(e.GetName()))
	case unixPath(e) != "" && len(unixPath(e)) > maxName:
		return fmt.Errorf("a name of %d bytes", len(e.GetName()))
	case e.GetBacklog() > 1<<31-1 && e.GetState() == unixListen:
		return fmt.Errorf("backlog %d is larger than any", e.GetBacklog())
	case e.GetUflags()&unixExternal != 0:
		return nil
	case e.NameDir != nil && (!strings.HasPrefix(e.GetNameDir(), "/") || strings.ContainsRune(e.GetNameDir(), 0) || len(e.GetNameDir()) >= unix.PathMax):
		return fmt.Errorf("name_dir %.100q is no absolute path", e.GetNameDir())
	case !placeable(e):
		return fmt.Errorf("its file was renamed to %.100q, which is no absolute path of a file", image.GetPlace(e))
	case e.GetDeleted() && unixPath(e) == "":
		return fmt.Errorf("it is deleted, but has no path")
	}
	return checkSocketOptions(e.GetOpts())
}

// placeable says whether the file of a socket can be where it was renamed to, if it was.
func placeable(e *sk_unix.UnixSkEntry) bool {
	place := image.GetPlace(e)
	return place == "" || unixPath(e) != "" && !e.GetDeleted() && path.IsAbs(place) && path.Clean(place) == place && place != "/" &&
		!strings.ContainsRune(place, 0) && len(place) < unix.PathMax
}

// unixPath is the path a socket is bound to, "" for an abstract name or none.
func unixPath(e *sk_unix.UnixSkEntry) string {
	name, _, _ := strings.Cut(string(e.GetName()), "\x00")
	return name
}

// Plan notes the socket and what its queue holds.
func (Unix) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	set, err := unixAll(p)
	if err != nil {
		return nil, err
	}
	us := e.GetUsk()
	u := &unixFile{UnixSkEntry: us, set: set, tool: -1, handle: -1}
	if us.GetId() != e.GetId() {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: usk has id %d", e.GetId(), us.GetId())
	}
	if fd, ok := p.Paths.inherited(fmt.Sprintf("socket:[%d]", us.GetIno())); ok {
		u.tool, u.role = fd, unixHanded
	}
	if u.role != unixHanded && us.GetUflags()&unixCallback != 0 {
		return nil, fmt.Errorf("unix socket %d was dumped by a plugin of criu: hand it in with --inherit-fd fd[N]:socket:[%[1]d]", us.GetIno())
	}
	if us.GetUflags()&unixExternal != 0 {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d stands for a socket outside and cannot be a task's", e.GetId())
	}
	if u.role != unixHanded {
		set.queues.to[us.GetId()] = u
	}
	set.planned[us.GetIno()] = u
	set.order = append(set.order, u)
	set.byPeer[us.GetPeer()] = append(set.byPeer[us.GetPeer()], u)
	return u, nil
}

// Needs is what is on the way to the socket.
func (u *unixFile) Needs() []uint32 {
	if u.role == unixHanded {
		return nil
	}
	return u.set.queues.rights(u.GetId())
}

func (u *unixFile) nonblock() int { return int(u.GetFlags()) & unix.O_NONBLOCK }

// Emit makes the socket at Open, lets it listen or connect, and sets its options at Attach.
func (u *unixFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if u.role == unixHanded {
		if lv == Open {
			s.FromTool(u.tool, u.GetId())
		}
		return nil
	}
	switch lv {
	case Open:
		u.create(b, s)
	case Pair:
		if u.GetState() == unixListen {
			u.emitListen(b, s, max(int(u.GetBacklog()), u.set.waiting(u)))
		}
	case Fill:
		return u.emitConnect(b, s)
	case Attach:
		u.attach(b, s)
	}
	return nil
}

// emitListen lets the socket listen, in the name of whom its clients are to see.
func (u *unixFile) emitListen(b *remote.Builder, s *Slots, backlog int) {
	asIDs(b, u.idsSeenBy(s.t), func() {
		b.Call(unix.SYS_LISTEN, remote.Imm(s.Number(u.GetId())), remote.Imm(backlog)).Must().Discard()
	})
}
