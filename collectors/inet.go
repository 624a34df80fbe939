package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"cryo/internal/image"
	"cryo/internal/sockdiag"
	"cryo/internal/sockopt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Inet collects sockets of IPv4 and IPv6: TCP, UDP, UDP-Lite, ICMP and raw ones.
//
// All that a socket can say of itself is asked by getsockopt. What it cannot, which directions of it are shut down, is
// looked up in the kernel's tables, listed once a protocol (package sockdiag). TCP connections are only noted here: they
// are taken when nothing stands in the way of the dump any more, see [Connections].
//
// A socket of MPTCP (Linux 5.6) that has no connection is stored as one of TCP: a Go server listens on them without having
// asked for it.
type Inet struct{}

// Match takes what is of an IP family.
func (Inet) Match(p *Probe) bool {
	return p.mode() == unix.S_IFSOCK && (p.Domain == unix.AF_INET || p.Domain == unix.AF_INET6)
}

// inetSocket is a socket that is being collected.
type inetSocket struct {
	*Probe
	fd          int   // the tool's own, while it is asked
	own         ownFD // another one, while it is collected
	kind, proto int
	cookie      uint64        // of its network namespace, 0 before Linux 5.14
	info        *unix.TCPInfo // of a TCP socket, nil for others
	corked      bool          // of a UDP socket
	entry       *sk_inet.InetSkEntry
}

// tcp says whether the socket is one of TCP, and no raw one.
func (s *inetSocket) tcp() bool { return s.info != nil }

// udp says whether the socket is one of UDP, and no raw one.
func (s *inetSocket) udp() bool {
	return s.kind != unix.SOCK_RAW && (s.proto == unix.IPPROTO_UDP || s.proto == unix.IPPROTO_UDPLITE)
}

// Ask asks the socket for all it can say.
func (Inet) Ask(p *Probe, fd int) (any, error) {
	s := &inetSocket{Probe: p, fd: fd}
	if b, err := sockopt.Bytes(fd, unix.SOL_SOCKET, soNetnsCookie, 8); err == nil && len(b) == 8 {
		s.cookie = binary.NativeEndian.Uint64(b)
	}
	if err := s.identify(); err != nil {
		return nil, err
	}
	s.entry = &sk_inet.InetSkEntry{
		Ino: proto.Uint32(uint32(p.Stat.Ino)), Family: proto.Uint32(uint32(p.Domain)),
		Type: proto.Uint32(uint32(s.kind)), Proto: proto.Uint32(uint32(s.proto)), Backlog: proto.Uint32(0),
		Flags: proto.Uint32(p.Flags), Fown: p.Owner, IpOpts: &sk_inet.IpOptsEntry{}, TcpOpts: &tcp_stream.TcpOptsEntry{},
	}
	if err := s.addresses(); err != nil {
		return nil, err
	}
	if s.tcp() {
		s.tcpOptions()
	}
	if s.udp() {
		cork, err := sockopt.Int(fd, unix.SOL_UDP, unix.UDP_CORK)
		if err != nil {
			return nil, err
		}
		s.corked = cork != 0
	}
	return s, s.ipOptions()
}

// soNetnsCookie is SO_NETNS_COOKIE: a number of the network namespace that no other ever has (Linux 5.14).
const soNetnsCookie = 71

// Collect makes an inet_sk_entry.
func (Inet) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	if p.answerErr != nil {
		return nil, p.answerErr
	}
	s := p.answer.(*inetSocket)
	s.own = notOwned(p)
	defer s.own.close()
	number, err := f.env.Sockets.namespace(f.env, s)
	if err != nil {
		return nil, err
	}
	s.entry.Id = proto.Uint32(id)
	if number != 0 {
		s.entry.NsId = proto.Uint32(number)
	}
	if err := s.state(f.env); err != nil {
		return nil, err
	}
	if s.entry.Opts, err = p.socketOptions(); err != nil {
		return nil, err
	}
	if s.tcp() {
		if s.entry.GetDstPort() != 0 && !f.env.Options.TCPClose {
			if err := f.env.Connections.add(s); err != nil {
				return nil, err
			}
		}
	}
	return &fdinfo.FileEntry{Isk: s.entry}, nil
}

// identify finds out what kind of socket it is, and refuses kinds that cannot be dumped.
func (s *inetSocket) identify() (err error) {
	if s.kind, err = sockopt.Int(s.fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return err
	}
	if s.proto, err = sockopt.Int(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil {
		return err
	}
	if s.kind == unix.SOCK_RAW {
		return nil
	}
	switch s.proto {
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return nil
	case unix.IPPROTO_TCP, unix.IPPROTO_MPTCP:
	default:
		return s.Obstacle(fmt.Sprintf("an IP socket of protocol %d, which cannot be dumped", s.proto), "close it before the dump")
	}
	if s.info, err = unix.GetsockoptTCPInfo(s.fd, unix.SOL_TCP, unix.TCP_INFO); err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	if s.proto == unix.IPPROTO_MPTCP {
		if s.info.State != unix.BPF_TCP_LISTEN && s.info.State != unix.BPF_TCP_CLOSE {
			return s.Obstacle("a connection of MPTCP, which the kernel cannot take apart", "run the program without it: GODEBUG=multipathtcp=0 for Go")
		}
		s.proto = unix.IPPROTO_TCP
	}
	return nil
}

// addresses asks where the socket is bound and connected to. The peer's address is asked by an option, which tells it even
// of a connection that is not yet, or no more.
func (s *inetSocket) addresses() error {
	size := unix.SizeofSockaddrInet4
	if s.Domain == unix.AF_INET6 {
		size = unix.SizeofSockaddrInet6
	}
	local, err := sockopt.Name(s.fd)
	if err == nil && len(local) < size {
		err = fmt.Errorf("the kernel tells an address of %d bytes", len(local))
	}
	if err != nil {
		return err
	}
	peer, err := sockopt.Bytes(s.fd, unix.SOL_SOCKET, unix.SO_PEERNAME, size)
	if errors.Is(err, unix.ENOTCONN) {
		peer, err = make([]byte, size), nil
	}
	if err != nil {
		return err
	}
	s.entry.SrcAddr, s.entry.SrcPort = s.addressWords(local)
	s.entry.DstAddr, s.entry.DstPort = s.addressWords(peer)
	return s.device(local)
}

// device notes the device that an address of a link is one of.
func (s *inetSocket) device(local []byte) error {
	if s.Domain != unix.AF_INET6 {
		return nil
	}
	const scopeAt = 24 // sin6_scope_id
	scope := binary.NativeEndian.Uint32(local[scopeAt:])
	if scope == 0 {
		return nil
	}
	device, err := deviceName(s.fd, scope)
	s.entry.Ifname = proto.String(device)
	return err
}

// addressWords is a struct sockaddr_in or sockaddr_in6 as images have it: the bytes of the address in words, and the port.
func (s *inetSocket) addressWords(raw []byte) ([]uint32, *uint32) {
	addr := raw[4:8]
	if s.Domain == unix.AF_INET6 {
		addr = raw[8:24]
	}
	var words []uint32
	for ; len(addr) > 0; addr = addr[4:] {
		words = append(words, binary.NativeEndian.Uint32(addr))
	}
	return words, proto.Uint32(uint32(binary.BigEndian.Uint16(raw[2:])))
}

// Directions that are shut down, as the kernel tells them.
const (
	shutRead  = 1
	shutWrite = 2
)

// state finds out in what state the socket is; those the user has not agreed to are refused.
func (s *inetSocket) state(env *Env) error {
	if s.tcp() {
		return s.tcpState(env)
	}
	known, err := env.Sockets.find(env, s)
	if err != nil {
		return err
	}
	s.entry.State = proto.Uint32(unix.BPF_TCP_CLOSE)
	if s.entry.GetDstPort() != 0 || known.State == unix.BPF_TCP_ESTABLISHED {
		s.entry.State = proto.Uint32(unix.BPF_TCP_ESTABLISHED)
	}
	if !s.udp() {
		return nil
	}
	s.setShutdown(known.Shutdown)
	if known.RQueue != 0 {
		slog.Warn(fmt.Sprintf("Task %d, %s: datagrams that have not been read will be lost", s.holder().Pid, s.Where()))
	}
	if s.corked {
		image.SetUDPCork(s.entry)
		if known.WQueue != 0 {
			return s.Obstacle("a corked UDP socket: what it has not sent yet cannot be read", "let it be uncorked before the dump")
		}
	}
	return nil
}

func (s *inetSocket) setShutdown(mask uint8) {
	if mask &= shutRead | shutWrite; mask != 0 {
		s.entry.Shutdown = sk_opts.SkShutdown(mask).Enum()
	}
}

// ipOptions asks for the options of the IP layer. The image has them where they are not zero.
func (s *inetSocket) ipOptions() error {
	o := s.entry.IpOpts
	type option struct {
		level, name int
		set         func(int)
	}
	flag := func(to **bool) func(int) {
		return func(v int) {
			if v != 0 {
				*to = proto.Bool(true)
			}
		}
	}
	number := func(to **uint32) func(int) {
		return func(v int) {
			if v != 0 {
				*to = proto.Uint32(uint32(v))
			}
		}
	}
	list := []option{
		{unix.SOL_IP, unix.IP_FREEBIND, flag(&o.Freebind)}, {unix.SOL_IP, unix.IP_PKTINFO, flag(&o.Pktinfo)},
		{unix.SOL_IP, unix.IP_TOS, number(&o.Tos)}, {unix.SOL_IP, unix.IP_TTL, number(&o.Ttl)},
	}
	if s.Domain == unix.AF_INET6 {
		list = []option{
			{unix.SOL_IPV6, unix.IPV6_FREEBIND, flag(&o.Freebind)}, {unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, flag(&o.Pktinfo)},
			{unix.SOL_IPV6, unix.IPV6_V6ONLY, func(v int) { s.entry.V6Only = proto.Bool(v != 0) }},
		}
	}
	if s.kind == unix.SOCK_RAW {
		o.Raw = &sk_inet.IpOptsRawEntry{}
		if s.Domain == unix.AF_INET6 {
			list = append(list, option{unix.SOL_IPV6, unix.IPV6_HDRINCL, flag(&o.Raw.Hdrincl)})
		} else {
			list = append(list, option{unix.SOL_IP, unix.IP_HDRINCL, flag(&o.Raw.Hdrincl)}, option{unix.SOL_IP, unix.IP_NODEFRAG, flag(&o.Raw.Nodefrag)})
		}
		if err := s.icmpFilter(o.Raw); err != nil {
			return err
		}
	}
	for _, opt := range list {
		v, err := sockopt.Int(s.fd, opt.level, opt.name)
		if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel, or a protocol, without it
		}
		if err != nil {
			return err
		}
		opt.set(v)
	}
	return nil
}

// icmpFilter asks which messages a raw ICMP socket does not get.
func (s *inetSocket) icmpFilter(o *sk_inet.IpOptsRawEntry) error {
	level, name, size := unix.SOL_RAW, 1, 4 // ICMP_FILTER
	switch {
	case s.Domain == unix.AF_INET && s.proto == unix.IPPROTO_ICMP:
	case s.Domain == unix.AF_INET6 && s.proto == unix.IPPROTO_ICMPV6:
		level, name, size = unix.SOL_ICMPV6, unix.ICMPV6_FILTER, 32
	default:
		return nil
	}
	b, err := sockopt.Bytes(s.fd, level, name, size)
	for ; err == nil && len(b) >= 4; b = b[4:] {
		o.IcmpvFilter = append(o.IcmpvFilter, binary.NativeEndian.Uint32(b))
	}
	return err
}

// InetSockets are the IP sockets the kernel lists, each protocol asked for once, when it is met.
type InetSockets struct {
	known      map[[2]int]map[uint32]sockdiag.Inet
	namespaces map[uint64]uint32 // their numbers in images, by cookie
}

// namespace is the number of the network namespace of a socket, 0 where no task is in it, which has to be the tree's.
func (k *InetSockets) namespace(env *Env, s *inetSocket) (uint32, error) {
	if number, known := k.namespaces[s.cookie]; known && s.cookie != 0 {
		return number, nil
	}
	fd, err := s.own.get()
	if err != nil {
		return 0, err
	}
	ns, number, err := s.netNS(env, fd, "an IP socket")
	if err != nil {
		return 0, err
	}
	if k.namespaces == nil {
		k.namespaces = map[uint64]uint32{}
	}
	k.namespaces[s.cookie] = number
	return number, ns.Close()
}

// find is what the kernel's tables say of a socket, nothing of one that is neither bound nor connected.
func (k *InetSockets) find(env *Env, s *inetSocket) (sockdiag.Inet, error) {
	if k.known == nil {
		k.known = map[[2]int]map[uint32]sockdiag.Inet{}
	}
	protocol := s.proto
	if s.kind == unix.SOCK_RAW || protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6 {
		return sockdiag.Inet{}, nil // nothing to be known but by the socket itself
	}
	key := [2]int{s.Domain, protocol}
	if k.known[key] == nil {
		all, err := sockdiag.DumpInet(env.NetNS.fd(), uint8(s.Domain), uint8(protocol))
		if err != nil {
			return sockdiag.Inet{}, err
		}
		k.known[key] = all
	}
	return k.known[key][uint32(s.Stat.Ino)], nil
}
