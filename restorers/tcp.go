package restorers

import (
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/image"
	"cryo/internal/netlock"
	"cryo/internal/remote"
	"cryo/internal/sockopt"
	"cryo/internal/tcprepair"

	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"golang.org/x/sys/unix"
)

// A connection of TCP is made in repair mode out of what tcp-stream-INO.img says: sequence numbers, options, both queues,
// windows. Then it is taken from ESTABLISHED to the state it was in: its own FIN is put into its queue, and that of the
// peer, and the peer's acknowledgement of ours, are delivered as segments the tool itself makes up.

// planConnection reads what there is of a connection, and refuses one the user has not agreed to.
func (s *inetSocket) planConnection(p *FilePlanner) error {
	if p.Opt.TCPClose {
		s.closed = true
		return nil
	}
	if !p.Opt.TCPEstablished {
		return fmt.Errorf("a TCP connection of %v with %v: --tcp-established restores it, --tcp-close restores it closed", s.src, s.dst)
	}
	d, f, err := image.Open(p.Set.Source, image.TCPStream, uint64(s.GetIno()))
	if err != nil {
		return err
	}
	defer f.Close()
	s.stream = &tcp_stream.TcpStreamEntry{}
	if err := d.NextInto(s.stream); err != nil {
		return err
	}
	if err := s.checkStream(); err != nil {
		return image.Errorf(image.TCPStream.File(uint64(s.GetIno())), 0, "%w", err)
	}
	p.plan.connections = append(p.plan.connections, s)
	return nil
}

// Bounds of what the kernel takes.
const (
	maxScale = 14
	maxQueue = 1 << 30
)

func (s *inetSocket) checkStream() error {
	e := s.stream
	if s.GetState() == unix.BPF_TCP_SYN_RECV || s.GetState() == unix.BPF_TCP_TIME_WAIT || s.GetState() == 0 {
		return fmt.Errorf("state %d is none of a connection", s.GetState())
	}
	if e.GetUnsqLen() > e.GetOutqLen() || e.GetOutqLen() > maxQueue || e.GetInqLen() > maxQueue {
		return fmt.Errorf("queues of %d and %d bytes, %d not sent", e.GetInqLen(), e.GetOutqLen(), e.GetUnsqLen())
	}
	if e.GetOptMask()&tcprepair.OptWScale != 0 && (e.GetSndWscale() > maxScale || e.GetRcvWscale() > maxScale) {
		return fmt.Errorf("window scales %d and %d", e.GetSndWscale(), e.GetRcvWscale())
	}
	return nil
}

// in says whether the state is one of some.
func (s *inetSocket) in(states ...uint32) bool {
	for _, st := range states {
		if s.GetState() == st {
			return true
		}
	}
	return false
}

// finReceived: the peer has closed, and its FIN is counted in the sequence number of the receive queue.
func (s *inetSocket) finReceived() bool {
	return s.in(unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_CLOSE)
}

// finQueued: this side has closed, and its FIN is counted in the sequence number of the send queue.
func (s *inetSocket) finQueued() bool {
	return s.in(unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSING, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSE)
}

// finAcked: the peer has acknowledged that FIN.
func (s *inetSocket) finAcked() bool { return s.in(unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSE) }

// connect makes the connection on a fresh socket, and leaves it in repair mode.
func (s *inetSocket) connect(fd int) error {
	for name, on := range map[int]bool{unix.SO_REUSEADDR: s.Opts.GetReuseaddr(), unix.SO_REUSEPORT: s.Opts.GetSoReuseport()} {
		if err := sockopt.SetInt(fd, unix.SOL_SOCKET, name, flag(on)); err != nil {
			return err
		}
	}
	if s.closed {
		return nil // Attach shuts it down
	}
	e := s.stream
	// Sequence numbers right before what is in the queues; FINs come later by themselves.
	recv, send := e.GetInqSeq()-e.GetInqLen(), e.GetOutqSeq()-e.GetOutqLen()
	if s.finReceived() {
		recv--
	}
	if s.finQueued() {
		send--
	}
	if err := s.establish(fd, recv, send); err != nil {
		return err
	}
	if err := s.fillQueues(fd); err != nil {
		return err
	}
	if e.SndWnd != nil {
		w := tcprepair.Window{SndWl1: e.GetSndWl1(), SndWnd: e.GetSndWnd(), MaxWindow: e.GetMaxWindow(), RcvWnd: e.GetRcvWnd(), RcvWup: e.GetRcvWup()}
		if s.finReceived() {
			// Without the FIN the window starts one earlier, and has to end where it did.
			w.RcvWup--
			w.RcvWnd++
		}
		if err := tcprepair.SetWindow(fd, w); err != nil {
			return err
		}
	}
	return s.closeSides(fd, recv+e.GetInqLen(), send, send+e.GetOutqLen())
}

// establish binds and connects the socket and sets what the two sides agreed on.
func (s *inetSocket) establish(fd int, recv, send uint32) error {
	if err := tcprepair.Enter(fd); err != nil {
		return err
	}
	for _, name := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := sockopt.SetInt(fd, unix.SOL_SOCKET, name, maxQueue-1); err != nil {
			return err // the queues have to fit
		}
	}
	if s.GetV6Only() {
		if err := sockopt.SetInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if err := s.bind(fd); err != nil {
		return err
	}
	if s.in(unix.BPF_TCP_SYN_SENT) {
		return s.sendSyn(fd, recv, send)
	}
	if err := tcprepair.SetSeq(fd, tcprepair.Recv, recv); err != nil {
		return err
	}
	if err := tcprepair.SetSeq(fd, tcprepair.Send, send); err != nil {
		return err
	}
	if err := s.all.patiently(func() error { return unix.Connect(fd, s.sockaddr(s.dst, 0)) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	e := s.stream
	o := tcprepair.Options{Mask: e.GetOptMask(), MSS: e.GetMssClamp(), SndWscale: e.GetSndWscale(), RcvWscale: e.GetRcvWscale()}
	if err := tcprepair.SetOptions(fd, o); err != nil {
		return err
	}
	if e.GetOptMask()&tcprepair.OptTimestamps == 0 {
		return nil
	}
	return sockopt.SetInt(fd, unix.SOL_TCP, unix.TCP_TIMESTAMP, int(int32(e.GetTimestamp())))
}

// sendSyn starts to connect once more, with the number the first SYN had: it is sent by the kernel itself.
func (s *inetSocket) sendSyn(fd int, recv, send uint32) error {
	if err := tcprepair.SetSeq(fd, tcprepair.Recv, recv); err != nil {
		return err
	}
	if err := tcprepair.SetSeq(fd, tcprepair.Send, send-1); err != nil {
		return err
	}
	// It is not waited for.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(s.GetFlags())|unix.O_NONBLOCK); err != nil {
		return err
	}
	err := tcprepair.Pause(fd, func() error {
		if err := unix.Connect(fd, s.sockaddr(s.dst, 0)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: %w", err)
		}
		return nil
	})
	_, err2 := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(s.GetFlags()))
	return errors.Join(err, err2)
}

// fillQueues puts the data into both queues. What was not sent yet is written as a program would, outside of repair mode:
// as long as no window is set the kernel holds it back.
func (s *inetSocket) fillQueues(fd int) error {
	e := s.stream
	if e.GetInqLen() == 0 && e.GetOutqLen() == 0 {
		return nil
	}
	d, f, err := image.Open(s.all.set.Source, image.TCPStream, uint64(s.GetIno()))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.NextInto(&tcp_stream.TcpStreamEntry{}); err != nil {
		return err
	}
	data := d.Payload()
	for _, part := range []struct {
		queue tcprepair.Queue
		size  uint32
	}{{tcprepair.Recv, e.GetInqLen()}, {tcprepair.Send, e.GetOutqLen() - e.GetUnsqLen()}} {
		if part.size == 0 {
			continue
		}
		if err := tcprepair.Choose(fd, part.queue); err != nil {
			return err
		}
		if err := copyToQueue(fd, data, int(part.size)); err != nil {
			return fmt.Errorf("queue %d: %w", part.queue, err)
		}
	}
	if e.GetUnsqLen() == 0 {
		return nil
	}
	return tcprepair.Pause(fd, func() error { return copyToQueue(fd, data, int(e.GetUnsqLen())) })
}

// queueChunk is how much goes into a queue at a time. The kernel makes one buffer of it, so it halves where memory is in
// pieces.
const queueChunk = 32 << 10

func copyToQueue(fd int, from io.Reader, size int) error {
	buf := make([]byte, min(size, queueChunk))
	for size > 0 {
		part := buf[:min(size, len(buf))]
		if _, err := io.ReadFull(from, part); err != nil {
			return err
		}
		size -= len(part)
		for limit := len(part); len(part) > 0; {
			n, err := unix.SendmsgN(fd, part[:min(limit, len(part))], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if errors.Is(err, unix.ENOMEM) && limit > 1024 {
				limit /= 2
				continue
			}
			if err != nil {
				return fmt.Errorf("%d bytes do not go in: %w", size+len(part), err)
			}
			part = part[n:]
		}
	}
	return nil
}

// closeSides brings an established connection to the state it was in. recv is the next number to be received, una the first
// that the peer has not acknowledged, next the one after all that is in the send queue.
func (s *inetSocket) closeSides(fd int, recv, una, next uint32) error {
	// Who closed first decides between CLOSING and LAST_ACK.
	own := func() error { return s.queueFin(fd) }
	peer := func() error { return s.deliver(tcprepair.FIN|tcprepair.ACK, recv, una) }
	var steps []func() error
	switch {
	case s.in(unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2):
		steps = append(steps, own)
	case s.in(unix.BPF_TCP_CLOSING):
		steps = append(steps, own, peer)
	case s.in(unix.BPF_TCP_CLOSE_WAIT):
		steps = append(steps, peer)
	case s.in(unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSE):
		steps = append(steps, peer, own)
	}
	if s.finAcked() {
		steps = append(steps, func() error {
			at := recv
			if s.finReceived() {
				at++
			}
			return s.deliver(tcprepair.ACK, at, next+1)
		})
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if len(steps) == 0 {
		return nil
	}
	return s.checkState(fd)
}

// queueFin closes the connection's own side. In the send queue of repair mode the FIN counts as sent, so it is sent again
// until the peer acknowledges it; behind data that was not sent yet it waits with them.
func (s *inetSocket) queueFin(fd int) error {
	queue := tcprepair.Send
	if s.stream.GetUnsqLen() > 0 {
		queue = tcprepair.None
	}
	if err := tcprepair.Choose(fd, queue); err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return tcprepair.Choose(fd, tcprepair.None)
}

// deliver plays the peer.
func (s *inetSocket) deliver(flags byte, seq, ack uint32) error {
	window := uint16(min(s.stream.GetSndWnd()>>s.stream.GetSndWscale(), 65535))
	return tcprepair.Segment{From: s.dst, To: s.src, Seq: seq, Ack: ack, Window: window, Flags: flags}.Deliver()
}

// checkState makes sure that the segments have arrived. The loopback device has delivered them by the time they are sent.
func (s *inetSocket) checkState(fd int) error {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	if uint32(info.State) != s.GetState() {
		return fmt.Errorf("the connection with %v got into state %d and not %d: does a packet filter drop what the loopback device delivers?",
			s.dst, info.State, s.GetState())
	}
	return nil
}

// emitTCPOptions sets the options of TCP. Sets of old tools have some of them elsewhere.
func (s *inetSocket) emitTCPOptions(b *remote.Builder, fd int, fresh freshInet) {
	if !s.tcp() {
		return
	}
	o := s.TcpOpts
	for _, opt := range []struct {
		name         int
		value, fresh uint32
	}{
		{unix.TCP_NODELAY, uint32(flag(o.GetNodelay() || s.stream.GetNodelay())), 0}, {unix.TCP_CORK, uint32(flag(o.GetCork() || s.stream.GetCork())), 0},
		{unix.TCP_KEEPCNT, max(o.GetKeepcnt(), s.Opts.GetTcpKeepcnt()), fresh.keepcnt},
		{unix.TCP_KEEPIDLE, max(o.GetKeepidle(), s.Opts.GetTcpKeepidle()), fresh.keepidle},
		{unix.TCP_KEEPINTVL, max(o.GetKeepintvl(), s.Opts.GetTcpKeepintvl()), fresh.keepintvl},
	} {
		if opt.value != 0 && opt.value != opt.fresh {
			setNumber(b, fd, unix.SOL_TCP, opt.name, int(opt.value))
		}
	}
}

// Connections lists the connections of the set by their ends.
func (p *FilePlan) Connections() []netlock.Conn {
	ends := make([]netlock.Conn, len(p.connections))
	for i, s := range p.connections {
		ends[i] = netlock.Conn{Local: s.src, Remote: s.dst}
	}
	return ends
}

// ConnectionSockets duplicates the sockets of all connections into the tool, to be taken out of repair mode. pid says which
// task has a table, as the tool sees it. The caller closes them.
func (p *FilePlan) ConnectionSockets(pid func(*Table) int) (sockets tcprepair.Sockets, err error) {
	g := &getter{pidfds: map[*Table]int{}, pid: pid}
	defer g.close()
	for _, s := range p.connections {
		t, number := p.final(s.GetId())
		if t == nil {
			continue // it was only needed on the way
		}
		fd, err := g.get(t, number)
		if err != nil {
			sockets.Close()
			return tcprepair.Sockets{}, fmt.Errorf("%s: fd %d: %w", t.Node, number, err)
		}
		sockets.Files = append(sockets.Files, os.NewFile(uintptr(fd), "connection"))
		sockets.Reuse = append(sockets.Reuse, s.Opts.GetReuseaddr())
	}
	return sockets, nil
}

// final is a table that has a file in the end, and its number there.
func (p *FilePlan) final(id uint32) (*Table, int) {
	for _, t := range p.Tables {
		if n := t.first(id); n >= 0 {
			return t, n
		}
	}
	return nil, -1
}
