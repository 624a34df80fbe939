package sinks

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spliced is a file of a stream whose bytes may be moved out of another pipe; see pagecopy.Piped.
type spliced interface {
	splices() bool
	seed(n int) uint32
	splice(pipe, n int, sum uint32) error
	// settle waits until nobody can change what was spliced.
	settle() error
}

// outPipe is a pipe that a stream goes to, into which splice(2) moves what lies in another one: pages of a task by reference.
type outPipe struct {
	raw  syscall.RawConn
	lent bool // it may hold pages that are a task's
}

// pipeOf returns nil if w is no pipe.
func pipeOf(w io.Writer) *outPipe {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	return &outPipe{raw: raw}
}

// take moves n bytes out of a pipe, which has them.
func (p *outPipe) take(from, n int) error {
	p.lent = true
	var failed error
	err := p.raw.Write(func(fd uintptr) bool {
		for n > 0 {
			moved, err := unix.Splice(from, nil, int(fd), nil, n, unix.SPLICE_F_MOVE)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err == nil && moved == 0:
				err = io.ErrUnexpectedEOF
				fallthrough
			case err != nil:
				failed = os.NewSyscallError("splice", err)
				return true
			}
			n -= int(max(moved, 0))
		}
		return true
	})
	if failed != nil {
		return failed
	}
	return err
}

// Until a pipe is empty it is asked so often, at first and at most.
const (
	firstLook = 20 * time.Microsecond
	mostLook  = 5 * time.Millisecond
)

// drain waits until the reader has read everything, or is no more. A task may end or go on then: what the reader has it has
// copied.
func (p *outPipe) drain() error {
	if !p.lent {
		return nil
	}
	for pause := firstLook; ; pause = min(2*pause, mostLook) {
		left, failed := 0, error(nil)
		err := p.raw.Control(func(fd uintptr) {
			if left, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ); failed != nil {
				return
			}
			ask := []unix.PollFd{{Fd: int32(fd)}}
			if n, err := unix.Poll(ask, 0); err == nil && n > 0 && ask[0].Revents&unix.POLLERR != 0 {
				failed = unix.EPIPE
			}
		})
		if err == nil {
			err = failed
		}
		if err != nil || left == 0 {
			p.lent = err != nil
			return err
		}
		time.Sleep(pause)
	}
}

// splices implements spliced.
func (f *streamFile) splices() bool {
	one, ok := f.s.w.(*onePipe)
	return ok && one.pipe != nil
}

// seed implements spliced.
func (f *streamFile) seed(n int) uint32 {
	return ^crc32.Checksum(appendNumbers(nil, f.id, frameData, n), castagnoli())
}

// splice implements spliced: one frame.
func (f *streamFile) splice(pipe, n int, sum uint32) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	header := binary.LittleEndian.AppendUint32(appendNumbers(nil, f.id, frameData, n), ^sum)
	if err := f.s.sendLocked(func() error { return f.s.w.(*onePipe).splice(header, pipe, n) }); err != nil {
		return err
	}
	f.size += uint64(n)
	f.s.bytes += uint64(n)
	return nil
}

// settle implements spliced.
func (f *streamFile) settle() error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.err == nil {
		if err := f.s.w.(*onePipe).pipe.drain(); err != nil {
			f.s.err = fmt.Errorf("write stream: %w", err)
		}
	}
	return f.s.err
}

// splice writes a frame whose payload lies in a pipe.
func (p *onePipe) splice(header []byte, pipe, n int) error {
	if _, err := p.w.Write(header); err != nil {
		return err
	}
	if err := p.w.Flush(); err != nil {
		return err
	}
	return p.pipe.take(pipe, n)
}
