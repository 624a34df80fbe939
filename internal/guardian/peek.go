package guardian

import (
	"context"
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"cryo/internal/procfs"
)

// PeekOffsets takes the offset off the unix sockets of tasks that package collectors looks into queues with
// (SO_PEEK_OFF). Record it before the first one is set. An offset that a program has set itself is taken off too; few
// programs know of such a thing.
type PeekOffsets struct{ Tasks []Task }

// UndoKind implements Record.
func (PeekOffsets) UndoKind() string { return "peek-offsets" }

func peekOffsets(ctx context.Context, data json.RawMessage, fds []int) error {
	var r PeekOffsets
	if err := decode(data, &r, fds, 0); err != nil {
		return err
	}
	return eachTask(r.Tasks, func(t Task) error { return t.eachDescriptor(ctx, clearPeekOffset) })
}

// eachDescriptor duplicates the descriptors of a task one after the other (pidfd_getfd, Linux 5.6).
func (t Task) eachDescriptor(ctx context.Context, do func(fd int) error) error {
	dir, err := procfs.OpenTask(t.PID)
	if err != nil {
		return err
	}
	defer dir.Close()
	numbers, err := dir.FDs()
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(t.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	for _, n := range numbers {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if errors.Is(err, unix.EBADF) {
			continue // it has closed it since
		}
		if err == nil {
			err = errors.Join(do(fd), unix.Close(fd))
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	return nil
}

func clearPeekOffset(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return nil // no such socket
	}
	off, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil || off < 0 {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1)
}
