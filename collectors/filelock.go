package collectors

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"cryo/internal/filelock"

	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// lockHolder is who has the locks that a descriptor shows: an open file, and for POSIX locks a descriptor table as well.
type lockHolder struct {
	file  uint32
	table *Task
}

// locks notes the locks of an open file in the order they were taken, each with the first descriptor that shows it.
func (f *Files) locks(p *Probe, id uint32) error {
	var noted []lockHolder
	for line := range p.Info.Lines("lock") {
		l, err := filelock.Parse(line)
		if err != nil {
			return f.note(p, p.Obstacle(err.Error(), ""))
		}
		holder := lockHolder{file: id}
		if l.Kind == filelock.POSIX {
			holder.table = p.Task
		}
		if f.lockHolders[holder] {
			continue
		}
		noted = append(noted, holder)
		if err := f.lock(p, l); err != nil {
			return f.note(p, err)
		}
	}
	for _, holder := range noted {
		f.lockHolders[holder] = true
	}
	return nil
}

// lock makes a file_lock_entry.
func (f *Files) lock(p *Probe, l *filelock.Lock) error {
	if !f.env.Options.FileLocks {
		return p.Obstacle(fmt.Sprintf("a lock (%s), which others may take when the task is gone", l.Kind), "--file-locks keeps it")
	}
	if l.Breaking {
		// Kernels differ in whether fdinfo tells what the lease is or what it is to become.
		target, err := p.fcntl(unix.F_GETLEASE)
		if err != nil {
			return fmt.Errorf("F_GETLEASE: %w", err)
		}
		l.Type = uint32(target) | filelock.Breaking
	}
	f.fileLocks = append(f.fileLocks, &file_lock.FileLockEntry{
		Flag: proto.Uint32(uint32(l.Kind)), Type: proto.Uint32(l.Type), Pid: proto.Int32(int32(p.Task.VPid)), Fd: proto.Int32(int32(p.FD)),
		Start: proto.Int64(l.Start), Len: proto.Int64(l.Len),
	})
	return nil
}

// locksInFlight refuses locks of files that only a queue has: an image of a lock names a descriptor.
func (f *Files) locksInFlight() {
	for _, id := range slices.Sorted(maps.Keys(f.sentLocked)) {
		if !f.lockHolders[lockHolder{file: id}] {
			f.env.Obstacles.Add(f.sentLocked[id].Obstacle("a file with a lock, which no task has open", "receive it before the dump"))
		}
	}
}

// fcntl asks about the open file.
func (p *Probe) fcntl(cmd int) (int, error) {
	fd, err := p.Dup()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), cmd, 0)
}

// errLeased says that a file cannot be read because of its lease.
var errLeased = errors.New("it is open for writing only, and reading it would break its lease")

// readable returns a descriptor to read the file with; the position stays as it is if that is not used. The file is
// opened anew, because the task may have it for writing only, but not if it has a lease: that would be broken.
func (p *Probe) readable(flags int) (int, error) {
	if p.Info == nil {
		return p.Reopen(flags)
	}
	for line := range p.Info.Lines("lock") {
		if l, err := filelock.Parse(line); err != nil || l.Kind != filelock.Lease {
			continue
		}
		if p.Flags&unix.O_ACCMODE == unix.O_WRONLY {
			return -1, errLeased
		}
		return p.Dup()
	}
	return p.Reopen(flags)
}
