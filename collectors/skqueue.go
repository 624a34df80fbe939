package collectors

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"cryo/internal/guardian"
	"cryo/internal/image"

	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// A peeker looks at the receive queue of a socket without taking anything out of it: by reading with MSG_PEEK. What the
// first such read does not show is read from an offset that only such reads have (SO_PEEK_OFF, Linux 3.4; unix sockets
// only at first, UDP since 4.16). The socket's own offset is put back at the end.
//
// One thing cannot be told: a message of no bytes that somebody has peeked at before is passed over by the kernel.
type peeker struct {
	fd   int
	typ  int // SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
	off  int
	buf  []byte
	own  int                  // the offset the program has set, -1 for none
	set  bool                 // another one is set
	warn func() error         // told before one is
	emit func(p peeked) error // gets a packet; its data are valid until it returns
}

// peeked is one message, or of a stream a run of bytes that goes without descriptors but at its beginning.
type peeked struct {
	data   []byte
	fds    []int // the tool's now
	cut    bool  // control messages were left out
	origin image.PacketOrigin
}

const (
	peekBuffer = 4 << 10
	// maxControl has room for 253 descriptors, the most a message carries, credentials, a security label and what other
	// options add.
	maxControl = 4 << 10
)

// newPeeker starts to look at a socket.
func newPeeker(fd, typ int) (*peeker, error) {
	own, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, fmt.Errorf("peek offset: %w", err)
	}
	return &peeker{fd: fd, typ: typ, own: own}, nil
}

// close puts the socket's own offset back.
func (p *peeker) close() error {
	if !p.set {
		return nil
	}
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, p.own); err != nil {
		return fmt.Errorf("put the peek offset back: %w", err)
	}
	return nil
}

// at makes the next read begin at the offset reached.
func (p *peeker) at() error {
	if !p.set {
		if err := p.warn(); err != nil {
			return err
		}
		p.set = true
	}
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, p.off); err != nil {
		return fmt.Errorf("set the peek offset: %w", err)
	}
	return nil
}

// messages emits all messages of a datagram or sequential-packet socket; first is about the length of the first one.
func (p *peeker) messages(first int, hungUp bool) error {
	p.buf = make([]byte, max(first, peekBuffer))
	for {
		m, full, err := p.read(len(p.buf), true)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		if full > len(m.data) { // the buffer was too small: again
			closeAll(m.fds)
			p.buf = make([]byte, full)
			continue
		}
		if full == 0 && hungUp && p.typ == unix.SOCK_SEQPACKET {
			return nil // the end, not a message
		}
		p.off += len(m.data)
		if err := p.emit(m); err != nil {
			return err
		}
	}
}

// stream emits size bytes, which is all there are. A read beyond them would take a pending error off the socket.
//
// Descriptors are to stay with the bytes they were sent with. A read ends behind such bytes, but others may come before
// them; and descriptors are handed out even if the read ends before their bytes. So the beginning of the bytes is
// searched for first.
func (p *peeker) stream(size int) error {
	p.buf = make([]byte, size)
	if p.own < 0 {
		// The usual case needs no offset: one piece, without descriptors.
		if m, _, err := p.readHere(size, false); err == nil && len(m.data) == size && !m.cut {
			return p.emit(m)
		}
	}
	for p.off < size {
		m, _, err := p.read(size-p.off, false)
		if err != nil || len(m.data) == 0 {
			return ignore(err, unix.EAGAIN)
		}
		n := len(m.data)
		start := n
		if m.cut {
			if start, err = p.lastPiece(n); err != nil {
				return err
			}
		}
		if start == 0 {
			m, _, err = p.read(n, true)
		} else if m, _, err = p.read(start, true); err == nil {
			closeAll(m.fds) // of the bytes that follow
			m.fds = nil
		}
		if err != nil || len(m.data) == 0 {
			return ignore(err, unix.EAGAIN)
		}
		p.off += len(m.data)
		if err := p.emit(m); err != nil {
			return err
		}
	}
	return nil
}

// lastPiece says where the last of the pieces begins that a read of n bytes is made of. The kernel copies each piece
// whole or not at all, so it is left out when there is no room for its last byte.
func (p *peeker) lastPiece(n int) (int, error) {
	if err := p.at(); err != nil {
		return 0, err
	}
	h := header{data: p.buf[:n-1], tooShort: true}
	start, err := h.receive(p.fd, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return start, ignore(err, unix.EFAULT) // not even the first
}

func ignore(err error, usual unix.Errno) error {
	if err == usual {
		return nil
	}
	return err
}

// read peeks at up to n bytes; full is the whole length of a message. Without control, descriptors are left alone.
func (p *peeker) read(n int, control bool) (m peeked, full int, err error) {
	if err := p.at(); err != nil {
		return m, 0, err
	}
	return p.readHere(n, control)
}

// readHere is read at the offset the socket has.
func (p *peeker) readHere(n int, control bool) (m peeked, full int, err error) {
	h := header{data: p.buf[:n], name: make([]byte, unix.SizeofSockaddrUnix)}
	if control {
		h.control = make([]byte, maxControl)
	}
	flags := unix.MSG_PEEK | unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC
	if p.typ != unix.SOCK_STREAM {
		flags |= unix.MSG_TRUNC
	}
	if full, err = h.receive(p.fd, flags); err != nil {
		return m, 0, err
	}
	m.data, m.cut = p.buf[:min(full, n)], h.flags&unix.MSG_CTRUNC != 0
	if len(h.name) > 2 {
		m.origin.Addr = h.name[2:]
	}
	m.fds, m.origin.Creds, err = parseControl(h.control)
	if err == nil && control && m.cut {
		err = errors.New("control messages are longer than any")
	}
	if err != nil {
		closeAll(m.fds)
		m.fds = nil
	}
	return m, full, err
}

// parseControl reads what came with a message. Other descriptors than those that were sent (SO_PASSPIDFD) are closed.
func parseControl(b []byte) (fds []int, creds *image.PacketCreds, err error) {
	list, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, nil, fmt.Errorf("control messages: %w", err)
	}
	for _, c := range list {
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_RIGHTS:
			fds = append(fds, descriptors(c.Data)...)
		case unix.SCM_PIDFD:
			closeAll(descriptors(c.Data))
		case unix.SCM_CREDENTIALS:
			var u [3]uint32
			if err := binary.Read(bytes.NewReader(c.Data), binary.NativeEndian, &u); err == nil {
				creds = &image.PacketCreds{PID: u[0], UID: u[1], GID: u[2]}
			}
		}
	}
	return fds, creds, nil
}

func descriptors(b []byte) []int {
	var fds []int
	for ; len(b) >= 4; b = b[4:] {
		if fd := int32(binary.NativeEndian.Uint32(b)); fd >= 0 {
			fds = append(fds, int(fd))
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// warnOfPeeks tells the guardian that sockets of a task are about to get offsets to peek at.
func (f *Files) warnOfPeeks(t *Task) error {
	if t.peeks || t.Stat == nil { // the tool itself: a socket in flight, which no task can peek at
		return nil
	}
	t.peeks = true
	return f.env.Undo("offsets to peek at", func(context.Context) error { return nil },
		guardian.PeekOffsets{Tasks: []guardian.Task{{PID: t.Pid, StartTime: t.Stat.StartTime}}})
}

// storeQueue puts what a peeker finds into sk-queues.img, for the file with this id.
func (f *Files) storeQueue(pk *peeker, carrier *Probe, id uint32) {
	pk.warn = func() error { return f.warnOfPeeks(carrier.Task) }
	pk.emit = func(m peeked) error {
		e := &sk_packet.SkPacketEntry{IdFor: proto.Uint32(id), Length: proto.Uint32(uint32(len(m.data)))}
		if len(m.fds) > 0 {
			// What comes out may be a socket with a queue of its own, so nothing of this packet is written yet.
			rights, err := f.sent(carrier, m.fds)
			if err != nil {
				return err
			}
			e.Scm = []*sk_packet.ScmEntry{{Type: proto.Uint32(unix.SCM_RIGHTS), Rights: rights}}
		}
		if c := m.origin.Creds; c != nil && c.PID != 0 {
			c.PID = uint32(f.env.PIDNS.Inner(int(c.PID)))
		}
		image.SetPacketOrigin(e, m.origin)
		if f.skQueues == nil {
			var err error
			if f.skQueues, err = image.Create(f.env.Images, image.SkQueues, 0); err != nil {
				return err
			}
		}
		if err := f.skQueues.Entry(e); err != nil {
			return err
		}
		return f.skQueues.Payload(bytes.NewReader(m.data))
	}
}
