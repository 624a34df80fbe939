package restorers

import (
	"fmt"
	"slices"

	"cryo/internal/filelock"
	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"golang.org/x/sys/unix"
)

// FileLock is a lock of filelocks.img and the file it is on.
type FileLock struct {
	*file_lock.FileLockEntry
	file *fdinfo.FileEntry
}

// FileLocks reads the locks of all tasks, by their pids, and checks them.
func FileLocks(s *Set) (map[int][]FileLock, error) {
	entries, err := image.ReadOptional(s.Source, image.FileLocks, 0)
	if err != nil {
		return nil, err
	}
	locks := map[int][]FileLock{}
	for i, e := range entries {
		wrong := func(what string) error {
			return image.Errorf(image.FileLocks.File(0), i, "lock of task %d, fd %d: %s", e.GetPid(), e.GetFd(), what)
		}
		t := s.ByPID[int(e.GetPid())]
		if t == nil || t.Dead() {
			return nil, wrong("there is no such task")
		}
		at := slices.IndexFunc(t.FDs, func(f *fdinfo.FdinfoEntry) bool { return int32(f.GetFd()) == e.GetFd() })
		if at < 0 {
			return nil, wrong("the task has no such descriptor")
		}
		lease := filelock.Kind(e.GetFlag()) == filelock.Lease
		switch filelock.Kind(e.GetFlag()) {
		case filelock.POSIX, filelock.Flock, filelock.OFD, filelock.Lease:
		default:
			return nil, wrong("flag is no kind of lock")
		}
		if typ := e.GetType(); typ > unix.F_UNLCK && !(lease && typ&^filelock.Breaking <= unix.F_UNLCK) || e.GetStart() < 0 || e.GetLen() < 0 {
			return nil, wrong("type, start and len describe no lock")
		}
		locks[t.PID] = append(locks[t.PID], FileLock{e, s.Files[t.FDs[at].GetId()]})
	}
	return locks, nil
}

// emitFileLocks takes the locks, one after the other, without waiting for any: what the dump saw was compatible, so
// whoever has such a lock now has taken it since. The last descriptor was closed before, which would give up POSIX locks.
func emitFileLocks(e *StateEmit) {
	for _, l := range e.Locks {
		fd := remote.Imm(l.GetFd())
		switch filelock.Kind(l.GetFlag()) {
		case filelock.Flock:
			how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[l.GetType()]
			e.Call(unix.SYS_FLOCK, fd, remote.Imm(how|unix.LOCK_NB)).Must().Discard()
		case filelock.POSIX:
			e.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_SETLK), e.Bytes(l.flock())).Must().Discard()
		case filelock.OFD:
			e.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_OFD_SETLK), e.Bytes(l.flock())).Must().Discard()
		case filelock.Lease:
			l.emitLease(e.Builder)
		}
	}
}

// flock is struct flock.
func (l *FileLock) flock() []byte {
	return words(uint64(l.GetType())|unix.SEEK_SET<<16, uint64(l.GetStart()), uint64(l.GetLen()), 0)
}

// emitLease takes a lease. One that is breaking is taken as it was first, and then broken again by opening the file in
// the way that leaves as much of it as the set says. Nobody is told of that: the signal has come, or is in the set.
func (l *FileLock) emitLease(b *remote.Builder) {
	fd, owner := remote.Imm(l.GetFd()), fownOf(l.file)
	if l.GetType()&filelock.Breaking == 0 {
		b.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_SETLEASE), remote.Imm(l.GetType())).Must().Discard()
	} else {
		was, open := unix.F_WRLCK, unix.O_WRONLY
		if flagsOf(l.file)&unix.O_ACCMODE == unix.O_RDONLY {
			was = unix.F_RDLCK // no other can be had
		}
		if l.GetType() == unix.F_RDLCK|filelock.Breaking {
			open = unix.O_RDONLY
		}
		b.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_SETLEASE), remote.Imm(was)).Must().Discard()
		emitNoOwner(b, fd)
		self := b.String(fmt.Sprintf("/proc/self/fd/%d", l.GetFd()))
		refused := -int64(unix.EWOULDBLOCK)
		b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), self, remote.Imm(open|unix.O_NONBLOCK|unix.O_CLOEXEC), remote.Imm(0)).Expect(uint64(refused))
	}
	// Who takes a lease becomes the owner of its signals, if nobody is.
	emitNoOwner(b, fd)
	emitOwner(b, int(l.GetFd()), owner)
}
