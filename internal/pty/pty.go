// Package pty moves what waits in the queues of a pseudo terminal out of it and back in.
//
// A byte that one end has written is processed by the line discipline on its way to the other: it may be echoed, raise a
// signal, end a line. What waits to be read has been through that, so it is put back while the settings let everything
// pass: all special characters off, no echo, output as it is. Lines stay lines: where the settings ask for them (ICANON),
// complete ones are put back in that mode, and what is left over is an unfinished line again.
//
// Kernel interfaces: termios(4), ioctl_tty(2). Nothing here waits for a program at the other end.
package pty

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// OpenSlave opens the slave of a master, wherever its file is (TIOCGPTPEER, Linux 4.13). flags are those of open(2).
func OpenSlave(master, flags int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, uintptr(flags))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// Pair is both ends of a pseudo terminal. Slave should be open for reading and writing, and must not block.
type Pair struct{ Master, Slave int }

// Queued is what waits to be read at each end.
type Queued struct{ AtMaster, AtSlave []byte }

// Empty says whether nothing waits.
func (q Queued) Empty() bool { return len(q.AtMaster)+len(q.AtSlave) == 0 }

// Limit is how many bytes are taken from one end at most, far above what the kernel queues by default.
const Limit = 256 << 10

// Copy returns what waits at both ends and leaves it there: it is taken out and put back at once. Nobody else may use the
// terminal meanwhile.
func (p Pair) Copy() (q Queued, err error) {
	if !p.waiting() {
		return q, nil
	}
	packet, err := unix.IoctlGetInt(p.Master, unix.TIOCGPKT)
	if err == nil && packet != 0 { // reads would begin with a byte of status
		if err = unix.IoctlSetPointerInt(p.Master, unix.TIOCPKT, 0); err == nil {
			defer func() { err = errors.Join(err, unix.IoctlSetPointerInt(p.Master, unix.TIOCPKT, packet)) }()
		}
	}
	if err != nil {
		return q, fmt.Errorf("packet mode of a terminal: %w", err)
	}
	err = p.with(func(t *unix.Termios) {
		t.Lflag &^= unix.ICANON | unix.ECHO | unix.ECHONL
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	}, func() (err error) {
		if q.AtSlave, err = drain(p.Slave); err == nil {
			q.AtMaster, err = drain(p.Master)
		}
		return err
	})
	return q, errors.Join(err, p.Fill(q))
}

// waiting says whether there is anything at either end; of unfinished lines the kernel does not tell.
func (p Pair) waiting() bool {
	if t, err := unix.IoctlGetTermios(p.Slave, unix.TCGETS); err == nil && t.Lflag&unix.ICANON != 0 {
		return true
	}
	atSlave, err1 := unix.IoctlGetInt(p.Slave, unix.TIOCINQ)
	atMaster, err2 := unix.IoctlGetInt(p.Master, unix.TIOCINQ)
	return err1 != nil || err2 != nil || atSlave+atMaster > 0
}

// drain reads as much as there is. It asks before each read: the descriptor may be one that waits.
func drain(fd int) ([]byte, error) {
	var all []byte
	for buf := make([]byte, 4096); ; {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // polling takes in what is on the way
		if _, err := unix.Poll(ready, 0); err != nil && !errors.Is(err, unix.EINTR) {
			return all, fmt.Errorf("poll of a terminal: %w", err)
		}
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil || n == 0 || len(all) >= Limit {
			return all, nil
		}
		if n, err = unix.Read(fd, buf[:min(n, len(buf))]); errors.Is(err, unix.EAGAIN) || n == 0 && err == nil {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("read what waits at a terminal: %w", err)
		}
		all = append(all, buf[:n]...)
	}
}

// Fill puts bytes where they wait to be read. The settings are afterwards as before.
func (p Pair) Fill(q Queued) error {
	if q.Empty() {
		return nil
	}
	return p.with(func(t *unix.Termios) {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, t.Lflag&unix.ICANON
		clear(t.Cc[:])
	}, func() error {
		if err := put(p.Master, p.Slave, q.AtSlave); err != nil {
			return err
		}
		return put(p.Slave, p.Master, q.AtMaster)
	})
}

// with runs something with other settings of the terminal.
func (p Pair) with(change func(*unix.Termios), run func() error) error {
	t, err := unix.IoctlGetTermios(p.Slave, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("settings of a terminal: %w", err)
	}
	other := *t
	change(&other)
	if err := unix.IoctlSetTermios(p.Slave, unix.TCSETS, &other); err != nil {
		return fmt.Errorf("settings of a terminal: %w", err)
	}
	err = run()
	return errors.Join(err, unix.IoctlSetTermios(p.Slave, unix.TCSETS, t))
}

const (
	chunk   = 128                    // what the kernel takes without waiting when it says that there is room
	arrival = 200 * time.Millisecond // for bytes to come through, which takes the kernel microseconds
)

// put writes at one end and waits until the bytes are at the other: the kernel carries them there in the background, and
// they are processed by the settings that hold when they arrive.
func put(at, to int, data []byte) error {
	before, err := unix.IoctlGetInt(to, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("queue of a terminal: %w", err)
	}
	for rest := data; len(rest) > 0; {
		ready := []unix.PollFd{{Fd: int32(at), Events: unix.POLLOUT}}
		if n, err := unix.Poll(ready, int(arrival/time.Millisecond)); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || n == 0 || ready[0].Revents&unix.POLLOUT == 0 {
			return fmt.Errorf("a terminal has no room for %d of %d bytes that waited", len(rest), len(data))
		}
		n, err := unix.Write(at, rest[:min(chunk, len(rest))])
		if err != nil {
			return fmt.Errorf("put back what waited at a terminal: %w", err)
		}
		rest = rest[n:]
	}
	for end := time.Now().Add(arrival); len(data) > 0 && time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if n, err := unix.IoctlGetInt(to, unix.TIOCINQ); err != nil || n >= before+countable(to, data) {
			return nil
		}
	}
	return nil // the kernel's read buffer is smaller: the rest is on its way until somebody reads
}

// countable is how many of the bytes TIOCINQ will count: in the mode that has lines, at the slave, only finished ones.
func countable(fd int, data []byte) int {
	const readBuffer = 4096 // N_TTY_BUF_SIZE; more stays on the way
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	_, notMaster := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil && t.Lflag&unix.ICANON != 0 && notMaster != nil {
		data = data[:bytes.LastIndexByte(data, '\n')+1]
	}
	return min(len(data), readBuffer-1)
}
