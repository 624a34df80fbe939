package collectors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"cryo/internal/image"
	"cryo/internal/netlock"
	"cryo/internal/sockopt"
	"cryo/internal/tcprepair"

	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Connections are the TCP connections of the tree. They are noted when they are met and stored later, when the network is
// locked, which is not done before it is clear that nothing refuses the dump.
type Connections struct {
	list []*connection
}

type connection struct {
	file  *os.File // the tool's own descriptor
	entry *sk_inet.InetSkEntry
	reuse bool // SO_REUSEADDR, which repair mode overwrites
	where string
}

// add notes a connection.
func (c *Connections) add(s *inetSocket) error {
	fd, err := s.Dup()
	if err != nil {
		return err
	}
	c.list = append(c.list, &connection{
		file: os.NewFile(uintptr(fd), "connection"), entry: s.entry, reuse: s.entry.Opts.GetReuseaddr(),
		where: fmt.Sprintf("task %d, %s: connection of %v with %v", s.Task.Pid, s.Where(), s.local(), s.peer()),
	})
	return nil
}

// Len is how many connections there are.
func (c *Connections) Len() int { return len(c.list) }

// Ends lists the connections for the lock.
func (c *Connections) Ends() []netlock.Conn {
	ends := make([]netlock.Conn, len(c.list))
	for i, conn := range c.list {
		ends[i] = netlock.Conn{
			Local:  wordsAddr(conn.entry.SrcAddr, conn.entry.GetSrcPort()),
			Remote: wordsAddr(conn.entry.DstAddr, conn.entry.GetDstPort()),
		}
	}
	return ends
}

// Sockets are the connections as they are given to whoever is to take them out of repair mode.
func (c *Connections) Sockets() tcprepair.Sockets {
	var s tcprepair.Sockets
	for _, conn := range c.list {
		s.Files, s.Reuse = append(s.Files, conn.file), append(s.Reuse, conn.reuse)
	}
	return s
}

// Close gives the tool's descriptors back. A connection that is in repair mode, and whose tasks have gone, ends by this
// without a word to its peer.
func (c *Connections) Close() { c.Sockets().Close() }

// Store stores every connection in tcp-stream-INO.img. Each is in repair mode only as long as it is read: if the tool is
// killed its tasks go on at once, and calls on a socket in that mode fail.
func (c *Connections) Store(set image.Creator) error {
	for _, conn := range c.list {
		if err := conn.store(set); err != nil {
			return fmt.Errorf("%s: %w", conn.where, err)
		}
	}
	return nil
}

func (c *connection) store(set image.Creator) error {
	fd := int(c.file.Fd())
	if err := tcprepair.Enter(fd); err != nil {
		return err
	}
	e, contents, err := c.read(fd)
	if err := errors.Join(err, tcprepair.LeaveQuietly(fd, c.reuse)); err != nil {
		return err
	}
	out, err := image.Create(set, image.TCPStream, uint64(c.entry.GetIno()))
	if err != nil {
		return err
	}
	err = out.Entry(e)
	if err == nil && len(contents) > 0 {
		err = out.Payload(bytes.NewReader(contents))
	}
	return errors.Join(err, out.Close())
}

// read reads a connection in repair mode, and the bytes of its queues, what was received first.
func (c *connection) read(fd int) (e *tcp_stream.TcpStreamEntry, contents []byte, err error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return nil, nil, fmt.Errorf("TCP_INFO: %w", err)
	}
	// It may have changed until the network was locked.
	c.entry.State = proto.Uint32(uint32(info.State))
	e = &tcp_stream.TcpStreamEntry{SndWscale: proto.Uint32(0)}
	if err := queueLengths(fd, info.State, e); err != nil {
		return nil, nil, err
	}
	if err := agreed(fd, e); err != nil {
		return nil, nil, err
	}
	window, ok, err := tcprepair.GetWindow(fd)
	if err != nil {
		return nil, nil, err
	}
	if ok {
		e.SndWl1, e.SndWnd, e.MaxWindow = proto.Uint32(window.SndWl1), proto.Uint32(window.SndWnd), proto.Uint32(window.MaxWindow)
		e.RcvWnd, e.RcvWup = proto.Uint32(window.RcvWnd), proto.Uint32(window.RcvWup)
	}
	contents, err = readQueues(fd, e)
	return e, contents, err
}

// agreed fills what the two sides agreed on when they connected, and the clock of time stamps.
func agreed(fd int, e *tcp_stream.TcpStreamEntry) error {
	const optionsAt, scalesAt = 5, 6 // in struct tcp_info: bits of options, two scales of four bits
	info, err := sockopt.Bytes(fd, unix.SOL_TCP, unix.TCP_INFO, scalesAt+1)
	if err != nil || len(info) <= scalesAt {
		return fmt.Errorf("TCP_INFO of %d bytes: %w", len(info), err)
	}
	mss, err := sockopt.Int(fd, unix.SOL_TCP, unix.TCP_MAXSEG)
	if err != nil {
		return err
	}
	e.MssClamp, e.OptMask = proto.Uint32(uint32(mss)), proto.Uint32(uint32(info[optionsAt]))
	if e.GetOptMask()&tcprepair.OptWScale != 0 {
		e.SndWscale, e.RcvWscale = proto.Uint32(uint32(info[scalesAt]&15)), proto.Uint32(uint32(info[scalesAt]>>4))
	}
	if e.GetOptMask()&tcprepair.OptTimestamps != 0 {
		now, err := sockopt.Int(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP)
		if err != nil {
			return err
		}
		e.Timestamp = proto.Uint32(uint32(now))
	}
	return nil
}

// queueLengths fills how much is in the queues. The FIN of a side that has closed counts as one byte in what is to be sent,
// but it is no data: the state says that it is there.
func queueLengths(fd int, state uint8, e *tcp_stream.TcpStreamEntry) error {
	var n [3]int
	for i, request := range []uint{unix.SIOCINQ, unix.SIOCOUTQ, unix.SIOCOUTQNSD} {
		var err error
		if n[i], err = unix.IoctlGetInt(fd, request); err != nil {
			return fmt.Errorf("length of a queue: %w", err)
		}
	}
	switch state {
	case unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSING, unix.BPF_TCP_LAST_ACK:
		n[1], n[2] = max(n[1]-1, 0), max(n[2]-1, 0)
	case unix.BPF_TCP_CLOSE:
		n[1], n[2] = 0, 0 // of a connection that was reset nothing is sent any more
	}
	e.InqLen, e.OutqLen, e.UnsqLen = proto.Uint32(uint32(n[0])), proto.Uint32(uint32(n[1])), proto.Uint32(uint32(n[2]))
	return nil
}

// readQueues reads both queues without taking anything from them.
func readQueues(fd int, e *tcp_stream.TcpStreamEntry) (contents []byte, err error) {
	for _, q := range []struct {
		queue tcprepair.Queue
		size  uint32
		seq   **uint32
	}{{tcprepair.Recv, e.GetInqLen(), &e.InqSeq}, {tcprepair.Send, e.GetOutqLen(), &e.OutqSeq}} {
		seq, err := tcprepair.Seq(fd, q.queue)
		if err != nil {
			return nil, err
		}
		*q.seq = proto.Uint32(seq)
		b, err := peek(fd, int(q.size))
		if err != nil {
			return nil, err
		}
		contents = append(contents, b...)
	}
	return contents, nil
}

// peek reads size bytes of the chosen queue, which has to hold no more and no less.
func peek(fd, size int) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	buf := make([]byte, size+1)
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("read a queue: %w", err)
	}
	if n != size {
		return nil, fmt.Errorf("a queue of %d bytes gives %d: is there urgent data in it?", size, n)
	}
	return buf[:n], nil
}

// wordsAddr is the address and port that an image has.
func wordsAddr(words []uint32, port uint32) netip.AddrPort {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(port))
}
