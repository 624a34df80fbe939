package restorers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/sockopt"
	"cryo/internal/spread"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"golang.org/x/sys/unix"
)

// Inet restores sockets of IPv4 and IPv6.
//
// The task that owns a socket makes it. Then the tool binds all sockets, lets listeners listen, and connects: in an order in
// which none is in the way of another. Options follow at Attach, and a connection of TCP leaves repair mode when the tree
// is let go (tcp.go).
type Inet struct{}

// inetSockets are all sockets of the set: what one may be bound to depends on the others.
type inetSockets struct {
	set      *Set
	list     []*inetSocket
	sorts    map[inetSort]freshInet
	patience func() time.Time // until when an address may be in use; asked when one is
}

type inetSocket struct {
	*sk_inet.InetSkEntry
	madeSocket
	all    *inetSockets
	src    netip.AddrPort
	dst    netip.AddrPort
	closed bool                       // a connection that is to be restored closed
	stream *tcp_stream.TcpStreamEntry // of a connection, nil for others
}

type inetKey struct{}

// Plan checks the entry and notes the socket.
func (Inet) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetIsk() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no isk", e.GetId())
	}
	all, err := Shared(p, inetKey{}, func() (*inetSockets, error) {
		all := &inetSockets{set: p.Set, patience: sync.OnceValue(func() time.Time { return time.Now().Add(addressPatience) })}
		p.plan.after(Fill, all)
		return all, nil
	})
	if err != nil {
		return nil, err
	}
	s := &inetSocket{InetSkEntry: e.GetIsk(), all: all}
	if err := s.check(); err != nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d, IP socket: %w", e.GetId(), err)
	}
	if err := p.Set.inNetNS(s.GetNsId()); err != nil {
		return nil, err
	}
	if s.connection() {
		if err := s.planConnection(p); err != nil {
			return nil, err
		}
	}
	all.list = append(all.list, s)
	return s, nil
}

// maxProtocol is one more than the largest protocol of the kernel (IPPROTO_MAX).
const maxProtocol = 263

// check refuses what no kernel would take.
func (s *inetSocket) check() error {
	words := 1
	switch s.GetFamily() {
	case unix.AF_INET:
	case unix.AF_INET6:
		words = 4
	default:
		return fmt.Errorf("family %d", s.GetFamily())
	}
	if len(s.SrcAddr) < words || len(s.DstAddr) < words || s.GetSrcPort() > 65535 || s.GetDstPort() > 65535 {
		return fmt.Errorf("addresses of %d and %d words, ports %d and %d", len(s.SrcAddr), len(s.DstAddr), s.GetSrcPort(), s.GetDstPort())
	}
	s.src, s.dst = inetAddr(s.SrcAddr[:words], s.GetSrcPort()), inetAddr(s.DstAddr[:words], s.GetDstPort())
	switch s.GetType() {
	case unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW:
	default:
		return fmt.Errorf("type %d", s.GetType())
	}
	switch {
	case s.GetProto() >= maxProtocol:
		return fmt.Errorf("protocol %d", s.GetProto())
	case s.GetState() == unix.BPF_TCP_LISTEN && !s.tcp():
		return fmt.Errorf("protocol %d does not listen", s.GetProto())
	case s.GetState() > unix.BPF_TCP_CLOSING:
		return fmt.Errorf("state %d", s.GetState())
	case s.GetShutdown() > sk_opts.SkShutdown_BOTH:
		return fmt.Errorf("shutdown %d", s.GetShutdown())
	}
	return checkSocketOptions(s.Opts)
}

func inetAddr(words []uint32, port uint32) netip.AddrPort {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(port))
}

// tcp says whether it is a socket of TCP, and no raw one.
func (s *inetSocket) tcp() bool {
	return s.GetType() == unix.SOCK_STREAM && (s.GetProto() == unix.IPPROTO_TCP || s.GetProto() == 0)
}

// connection says whether it is one end of a TCP connection.
func (s *inetSocket) connection() bool { return s.tcp() && s.GetDstPort() != 0 }

func (s *inetSocket) Needs() []uint32 { return nil }

func (s *inetSocket) Emit(lv Level, b *remote.Builder, slots *Slots) error {
	switch lv {
	case Open:
		s.emitMake(b, slots, s, s.GetFamily(), s.GetType(), s.GetProto())
	case Attach:
		s.emitOptions(b, slots.Number(s.GetId()))
	}
	return nil
}

// emitOptions sets what a fresh socket has not.
func (s *inetSocket) emitOptions(b *remote.Builder, fd int) {
	fresh := s.all.fresh(s)
	s.emitIPOptions(b, fd, fresh)
	if s.IpOpts.GetTos() != 0 && s.Opts.SoPriority != nil {
		setNumber(b, fd, unix.SOL_SOCKET, unix.SO_PRIORITY, int(s.Opts.GetSoPriority())) // which follows IP_TOS
	}
	if s.connection() || !fresh.hasBuffers(s.Opts) {
		emitBufferSizes(b, fd, s.Opts)
	}
	emitPlainOptions(b, fd, s.Opts)
	if s.GetType() == unix.SOCK_DGRAM && image.UDPCork(s.InetSkEntry) {
		setNumber(b, fd, unix.SOL_UDP, unix.UDP_CORK, 1)
	}
	s.emitTCPOptions(b, fd, fresh)
	s.emitShutdown(b, fd)
}

// fill binds and connects. Listeners and sockets without a connection go first: they need their ports for themselves,
// while a connection in repair mode is bound whoever has the port. A socket may be one that waits: nothing here does.
func (all *inetSockets) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	ports := all.ports()
	bind := func(s *inetSocket, fd int) error {
		if s.connection() {
			return nil
		}
		return s.bindAndListen(fd, ports)
	}
	settle := func(s *inetSocket, fd int) error {
		if s.connection() {
			return s.connect(fd)
		}
		return s.settle(fd, ports)
	}
	alone, rest := all.alone(ports)
	err := spread.Range(len(alone), socketsAtOnce, func(i int) error {
		return completeSocket(ctx, alone[i], open, func(s *inetSocket, fd int) error {
			if err := bind(s, fd); err != nil {
				return err
			}
			return settle(s, fd)
		})
	})
	if err != nil {
		return err
	}
	return completeSockets(ctx, rest, open, bind, settle)
}

// socketsAtOnce is how many sockets that have nothing to do with each other are a chunk of work.
const socketsAtOnce = 64

// alone takes out of the list what has a port that no other socket wants: these neither wait for others nor does their
// order matter.
func (all *inetSockets) alone(ports map[port]int) (alone, rest []*inetSocket) {
	for _, s := range all.list {
		if !s.connection() && s.GetSrcPort() != 0 && ports[s.port()] == 1 {
			alone = append(alone, s)
		} else {
			rest = append(rest, s)
		}
	}
	return alone, rest
}

func (s *inetSocket) title() string { return fmt.Sprintf("IP socket %v", s.src) }

// port is what two sockets cannot have both, unless they say so.
type port struct{ kind, proto, number uint32 }

func (s *inetSocket) port() port { return port{s.GetType(), s.GetProto(), s.GetSrcPort()} }

// ports counts the sockets of each port.
func (all *inetSockets) ports() map[port]int {
	n := map[port]int{}
	for _, s := range all.list {
		n[s.port()]++
	}
	return n
}

// bindAndListen binds a socket that is no connection of TCP to its address, and lets it listen, or sets its peer.
func (s *inetSocket) bindAndListen(fd int, ports map[port]int) error {
	for _, o := range s.optionsToBind(ports[s.port()] > 1) {
		if err := sockopt.SetInt(fd, o.level, o.name, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
	}
	if dev := s.Opts.GetSoBoundDev(); dev != "" {
		if err := unix.BindToDevice(fd, dev); err != nil {
			return fmt.Errorf("bind to device %s: %w", dev, err)
		}
	}
	if s.GetSrcPort() != 0 {
		if err := s.bind(fd); err != nil {
			return err
		}
	}
	if s.GetState() == unix.BPF_TCP_LISTEN {
		if err := unix.Listen(fd, int(s.GetBacklog())); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	if s.GetDstPort() != 0 || s.GetState() == unix.BPF_TCP_ESTABLISHED {
		if err := unix.Connect(fd, s.sockaddr(s.dst, 0)); err != nil {
			return fmt.Errorf("connect to %v: %w", s.dst, err)
		}
	}
	return nil
}

type inetOption struct {
	level, name int
	stays       bool // the image has it as well
}

// optionsToBind are the options that are on while a socket is bound, whatever they are later: sockets that were bound side
// by side may have lost since what allowed it, and an IPv6 address is not there for a moment when its device comes up.
func (s *inetSocket) optionsToBind(shared bool) []inetOption {
	list := []inetOption{{unix.SOL_SOCKET, unix.SO_REUSEADDR, s.Opts.GetReuseaddr()}}
	if s.Opts.GetSoReuseport() || shared {
		list = append(list, inetOption{unix.SOL_SOCKET, unix.SO_REUSEPORT, s.Opts.GetSoReuseport()})
	}
	if s.GetV6Only() {
		list = append(list, inetOption{unix.SOL_IPV6, unix.IPV6_V6ONLY, true})
	}
	if s.GetFamily() == unix.AF_INET6 {
		list = append(list, inetOption{unix.SOL_IPV6, unix.IPV6_FREEBIND, s.IpOpts.GetFreebind()})
	} else if s.IpOpts.GetFreebind() {
		list = append(list, inetOption{unix.SOL_IP, unix.IP_FREEBIND, true})
	}
	return list
}

func (s *inetSocket) bind(fd int) error {
	device := 0
	if name := s.GetIfname(); name != "" {
		// The socket itself is asked: it knows the devices of its namespace.
		req, err := unix.NewIfreq(name)
		if err != nil {
			return fmt.Errorf("ifname %q: %w", name, err)
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		device = int(req.Uint32())
	}
	if err := s.all.patiently(func() error { return unix.Bind(fd, s.sockaddr(s.src, device)) }); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// Where a restore was killed, its guardian may hold the connections for some moments more.
const (
	addressPatience = 2 * time.Second
	addressPause    = 10 * time.Millisecond
)

// patiently tries again while an address is in use, for a time that all sockets share.
func (all *inetSockets) patiently(try func() error) error {
	for {
		err := try()
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		if time.Now().After(all.patience()) {
			return err
		}
		time.Sleep(addressPause)
	}
}

func (s *inetSocket) sockaddr(a netip.AddrPort, device int) unix.Sockaddr {
	if s.GetFamily() == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: uint32(device)}
}

// settle takes back, when everything is bound, what bindAndListen has set to bind.
func (s *inetSocket) settle(fd int, ports map[port]int) error {
	for _, o := range s.optionsToBind(ports[s.port()] > 1) {
		if o.stays {
			continue
		}
		if err := sockopt.SetInt(fd, o.level, o.name, 0); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
	}
	return nil
}

// emitIPOptions sets the options of the IP layer.
func (s *inetSocket) emitIPOptions(b *remote.Builder, fd int, fresh freshInet) {
	o := s.IpOpts
	if s.GetFamily() == unix.AF_INET6 {
		if s.connection() && o.GetFreebind() {
			setNumber(b, fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		}
		if o.GetPktinfo() {
			setNumber(b, fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	} else {
		if s.connection() && o.GetFreebind() {
			setNumber(b, fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
		if o.GetPktinfo() {
			setNumber(b, fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
		if o.GetTos() != 0 {
			setNumber(b, fd, unix.SOL_IP, unix.IP_TOS, int(o.GetTos()))
		}
		if o.GetTtl() != 0 && o.GetTtl() != fresh.ttl {
			setNumber(b, fd, unix.SOL_IP, unix.IP_TTL, int(o.GetTtl()))
		}
	}
	if o.GetRaw() != nil {
		s.emitRawOptions(b, fd, o.GetRaw())
	}
}

func (s *inetSocket) emitRawOptions(b *remote.Builder, fd int, o *sk_inet.IpOptsRawEntry) {
	level, header, icmp, filter := unix.SOL_IP, unix.IP_HDRINCL, unix.SOL_RAW, 1 // ICMP_FILTER
	if s.GetFamily() == unix.AF_INET6 {
		level, header, icmp, filter = unix.SOL_IPV6, unix.IPV6_HDRINCL, unix.SOL_ICMPV6, unix.ICMPV6_FILTER
	}
	if o.Hdrincl != nil {
		setNumber(b, fd, level, header, flag(o.GetHdrincl()))
	}
	if o.GetNodefrag() {
		setNumber(b, fd, unix.SOL_IP, unix.IP_NODEFRAG, 1)
	}
	if n := len(o.IcmpvFilter); n > 0 && (s.GetProto() == unix.IPPROTO_ICMP || s.GetProto() == unix.IPPROTO_ICMPV6) {
		value := b.Bytes(words32(o.IcmpvFilter))
		b.Call(unix.SYS_SETSOCKOPT, remote.Imm(fd), remote.Imm(icmp), remote.Imm(filter), value, remote.Imm(4*n)).Must().Discard()
	}
}

// emitShutdown ends a direction of the socket that has ended. Of one without a connection the kernel says ENOTCONN, and
// does it all the same.
func (s *inetSocket) emitShutdown(b *remote.Builder, fd int) {
	how := int(s.GetShutdown()) - 1 // SHUT_RD and so on are one less
	if s.closed {
		how = unix.SHUT_RDWR
	}
	if how >= 0 && (s.closed || s.GetState() != unix.BPF_TCP_SYN_SENT) {
		b.Call(unix.SYS_SHUTDOWN, remote.Imm(fd), remote.Imm(how)).Allow(unix.ENOTCONN).Discard()
	}
}

// setNumber sets an option whose value is a number.
func setNumber(b *remote.Builder, fd, level, name, value int) {
	v := b.Bytes(words32([]uint32{uint32(value)}))
	b.Call(unix.SYS_SETSOCKOPT, remote.Imm(fd), remote.Imm(level), remote.Imm(name), v, remote.Imm(4)).Must().Discard()
}

func flag(on bool) int {
	if on {
		return 1
	}
	return 0
}
