// Package tcprepair takes TCP connections apart and puts them together.
//
// A socket in repair mode (TCP_REPAIR) sends nothing by itself, is closed without a word to its peer, tells the contents
// and sequence numbers of its queues, and takes them: connect then makes a connection out of what was set, and nothing
// goes over the wire. Entering the mode needs CAP_NET_ADMIN in the user namespace of the socket's network namespace.
//
// Kernel interfaces: TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OPTIONS (Linux 3.5), TCP_TIMESTAMP (3.9),
// TCP_REPAIR_WINDOW (4.8), leaving without a window probe (4.19).
package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cryo/internal/sockopt"

	"golang.org/x/sys/unix"
)

// Values of TCP_REPAIR.
const (
	off        = 0
	on         = 1
	offNoProbe = -1
)

// Queue names a queue of a connection.
type Queue int

// The queues.
const (
	None Queue = iota
	Recv
	Send
)

// Enter puts a socket in repair mode. From then on its SO_REUSEADDR is the kernel's own.
func Enter(fd int) error { return sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, on) }

// Leave takes a socket out of repair mode and gives it back its SO_REUSEADDR. The kernel sends a window probe, so that both
// sides find out what they missed; it does so for a socket that is not in the mode as well.
func Leave(fd int, reuse bool) error {
	return errors.Join(sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, off), setReuse(fd, reuse))
}

// LeaveQuietly is Leave without a window probe, where the kernel knows how.
func LeaveQuietly(fd int, reuse bool) error {
	return errors.Join(leaveQuietly(fd), setReuse(fd, reuse))
}

func leaveQuietly(fd int) error {
	err := sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, offNoProbe)
	if errors.Is(err, unix.EINVAL) {
		err = sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, off)
	}
	return err
}

func setReuse(fd int, reuse bool) error {
	v := 0
	if reuse {
		v = 1
	}
	return sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, v)
}

// Pause leaves repair mode for f, quietly.
func Pause(fd int, f func() error) error {
	if err := leaveQuietly(fd); err != nil {
		return err
	}
	return errors.Join(f(), Enter(fd))
}

// Choose says which queue the calls that follow are about.
func Choose(fd int, q Queue) error {
	return sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_REPAIR_QUEUE, int(q))
}

// Seq is the sequence number at the end of a queue: the next one to be received, or to be written.
func Seq(fd int, q Queue) (uint32, error) {
	if err := Choose(fd, q); err != nil {
		return 0, err
	}
	n, err := sockopt.Int(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ)
	return uint32(n), err
}

// SetSeq sets where a queue starts, before the connection is made.
func SetSeq(fd int, q Queue, seq uint32) error {
	if err := Choose(fd, q); err != nil {
		return err
	}
	return sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_QUEUE_SEQ, int(int32(seq)))
}

// Window is struct tcp_repair_window: what both sides have offered each other.
type Window struct{ SndWl1, SndWnd, MaxWindow, RcvWnd, RcvWup uint32 }

const sizeofWindow = 20

// GetWindow reads the window. ok is false if the kernel does not tell.
func GetWindow(fd int) (w Window, ok bool, err error) {
	b, err := sockopt.Bytes(fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, sizeofWindow)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return w, false, nil
	}
	if err == nil && len(b) != sizeofWindow {
		err = fmt.Errorf("the kernel tells a window of %d bytes", len(b))
	}
	if err != nil {
		return w, false, err
	}
	for i, to := range []*uint32{&w.SndWl1, &w.SndWnd, &w.MaxWindow, &w.RcvWnd, &w.RcvWup} {
		*to = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w, true, nil
}

// SetWindow sets the window of a connection.
func SetWindow(fd int, w Window) error {
	var b []byte
	for _, v := range []uint32{w.SndWl1, w.SndWnd, w.MaxWindow, w.RcvWnd, w.RcvWup} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return sockopt.SetBytes(fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, b)
}

// Bits of the options the two sides have agreed on, in TCP_INFO and in images.
const (
	OptTimestamps = 1
	OptSACK       = 2
	OptWScale     = 4
)

// Options are what both sides agreed on when they connected.
type Options struct {
	Mask                 uint32
	MSS                  uint32
	SndWscale, RcvWscale uint32
}

// Codes of options on the wire, by which TCP_REPAIR_OPTIONS goes as well.
const (
	codeMSS       = 2
	codeWScale    = 3
	codeSACK      = 4
	codeTimestamp = 8
)

// SetOptions sets the options of a connection that has just been made.
func SetOptions(fd int, o Options) error {
	var b []byte
	option := func(code, value uint32) {
		b = binary.NativeEndian.AppendUint32(b, code)
		b = binary.NativeEndian.AppendUint32(b, value)
	}
	if o.Mask&OptSACK != 0 {
		option(codeSACK, 0)
	}
	if o.Mask&OptWScale != 0 {
		option(codeWScale, o.SndWscale|o.RcvWscale<<16)
	}
	if o.Mask&OptTimestamps != 0 {
		option(codeTimestamp, 0)
	}
	option(codeMSS, o.MSS)
	return sockopt.SetBytes(fd, unix.SOL_TCP, unix.TCP_REPAIR_OPTIONS, b)
}
