package tcprepair

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"cryo/internal/netlock"
	"cryo/internal/sockopt"

	"golang.org/x/sys/unix"
)

// Flags of a segment.
const (
	FIN = 0x01
	ACK = 0x10
)

// Segment is a TCP segment without data or options, as the peer of a connection would send it.
type Segment struct {
	From, To netip.AddrPort // From is the peer
	Seq, Ack uint32
	Window   uint16
	Flags    byte
}

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	hops       = 64
)

// Deliver hands the segment to this machine's own TCP, through a raw socket and past the lock of the network. Both
// addresses are of one family; IPv4 addresses may be in their IPv6 form. It needs CAP_NET_RAW and CAP_NET_ADMIN.
func (s Segment) Deliver() error {
	s.From = netip.AddrPortFrom(s.From.Addr().Unmap(), s.From.Port())
	s.To = netip.AddrPortFrom(s.To.Addr().Unmap(), s.To.Port())
	domain := unix.AF_INET
	var to unix.Sockaddr = &unix.SockaddrInet4{}
	if s.To.Addr().Is4() {
		to = &unix.SockaddrInet4{Addr: s.To.Addr().As4()}
	} else {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: s.To.Addr().As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	if err := sockopt.SetInt(fd, unix.SOL_SOCKET, unix.SO_MARK, netlock.Mark); err != nil {
		return err
	}
	if err := unix.Sendto(fd, s.packet(), 0, to); err != nil {
		return fmt.Errorf("deliver a segment: %w", err)
	}
	return nil
}

// packet is the segment with its headers. The kernel fills the checksum of an IPv4 header itself.
func (s Segment) packet() []byte {
	src, dst := s.From.Addr().AsSlice(), s.To.Addr().AsSlice()
	var p []byte
	if s.To.Addr().Is4() {
		p = make([]byte, 12, ipv4Header+tcpHeader)
		p[0], p[8], p[9] = 4<<4|ipv4Header/4, hops, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(p[2:], ipv4Header+tcpHeader)
	} else {
		p = make([]byte, 8, ipv6Header+tcpHeader)
		p[0], p[6], p[7] = 6<<4, unix.IPPROTO_TCP, hops
		binary.BigEndian.PutUint16(p[4:], tcpHeader)
	}
	p = append(append(p, src...), dst...)
	tcp := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(tcp, s.From.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.To.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.Seq)
	binary.BigEndian.PutUint32(tcp[8:], s.Ack)
	tcp[12], tcp[13] = tcpHeader/4<<4, s.Flags
	binary.BigEndian.PutUint16(tcp[14:], s.Window)
	binary.BigEndian.PutUint16(tcp[16:], checksum(src, dst, tcp))
	return append(p, tcp...)
}

// checksum is that of a segment and the pseudo header before it.
func checksum(src, dst, tcp []byte) uint16 {
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(tcp))
	for _, part := range [][]byte{src, dst, tcp} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
