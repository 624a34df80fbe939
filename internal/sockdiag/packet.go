package sockdiag

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Packet is one packet socket.
type Packet struct {
	Type     uint8  // SOCK_RAW, SOCK_DGRAM or SOCK_PACKET
	Protocol uint16 // ETH_P_*, in host byte order

	// Of struct packet_diag_info.
	Index, Version, Reserve, CopyThreshold, Timestamp, Flags uint32

	Members []PacketMember
	// Fanout is the group the socket shares its packets in, nil for none: number and kind, without flags.
	Fanout *uint32
	RX, TX *PacketRing
}

// What Flags of a Packet say.
const (
	PacketAuxdata = 1 << 1
	PacketOrigDev = 1 << 2
	PacketVnetHdr = 1 << 3
	PacketLoss    = 1 << 4
)

// PacketMember says that a device receives more for the socket's sake.
type PacketMember struct {
	Index, Count uint32
	Type         uint16 // PACKET_MR_*
	Addr         []byte
}

// PacketRing is the shape of a ring of packets that is mapped: struct tpacket_req3.
type PacketRing struct {
	BlockSize, Blocks, FrameSize, Frames, RetireTimeout, PrivateSize, Features uint32
}

// Len is the length of a ring in bytes; none has 0.
func (r *PacketRing) Len() uint64 {
	if r == nil {
		return 0
	}
	return uint64(r.BlockSize) * uint64(r.Blocks)
}

// Layout of struct packet_diag_req and struct packet_diag_msg, and what is asked for (linux/packet_diag.h).
const (
	packetReqSize = 20
	packetShow    = 8
	packetShowAll = 1<<0 | 1<<1 | 1<<2 | 1<<3 // info, memberships, rings, fanout

	packetMsgSize = 16
	packetInode   = 4

	packetInfo    = 0
	packetMembers = 1
	packetRX      = 2
	packetTX      = 3
	packetFanout  = 4

	packetMemberSize = 44
	packetMaxAddr    = 32
)

// PacketSockets lists the packet sockets, by inode number, of the network namespace that netNS is a descriptor of
// (packet_diag, Linux 3.7).
func PacketSockets(netNS int) (map[uint32]*Packet, error) {
	all := map[uint32]*Packet{}
	req := make([]byte, packetReqSize)
	req[0] = unix.AF_PACKET
	binary.NativeEndian.PutUint32(req[packetShow:], packetShowAll)
	err := dump(netNS, req, func(msg []byte) error {
		if len(msg) < packetMsgSize {
			return fmt.Errorf("an answer of %d bytes", len(msg))
		}
		p, err := parsePacket(msg)
		all[binary.NativeEndian.Uint32(msg[packetInode:])] = p
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list packet sockets: %w (is the module af_packet_diag there?)", err)
	}
	return all, nil
}

// parsePacket reads struct packet_diag_msg and the attributes behind it.
func parsePacket(msg []byte) (*Packet, error) {
	p := &Packet{Type: msg[1], Protocol: binary.NativeEndian.Uint16(msg[2:])}
	attrs, err := nl.ParseRouteAttr(msg[packetMsgSize:])
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		w := words(a.Value)
		switch {
		case a.Attr.Type == packetInfo && len(w) >= 6:
			p.Index, p.Version, p.Reserve, p.CopyThreshold, p.Timestamp, p.Flags = w[0], w[1], w[2], w[3], w[4], w[5]
		case a.Attr.Type == packetMembers:
			for v := a.Value; len(v) >= packetMemberSize; v = v[packetMemberSize:] {
				p.Members = append(p.Members, parseMember(v))
			}
		case a.Attr.Type == packetRX && len(w) >= 7:
			p.RX = &PacketRing{w[0], w[1], w[2], w[3], w[4], w[5], w[6]}
		case a.Attr.Type == packetTX && len(w) >= 7:
			p.TX = &PacketRing{w[0], w[1], w[2], w[3], w[4], w[5], w[6]}
		case a.Attr.Type == packetFanout && len(w) >= 1:
			p.Fanout = &w[0]
		}
	}
	return p, nil
}

// parseMember reads struct packet_diag_mclist.
func parseMember(v []byte) PacketMember {
	const typeAt, lenAt, addrAt = 8, 10, 12
	order := binary.NativeEndian
	n := min(int(order.Uint16(v[lenAt:])), packetMaxAddr)
	return PacketMember{Index: order.Uint32(v), Count: order.Uint32(v[4:]), Type: order.Uint16(v[typeAt:]),
		Addr: append([]byte(nil), v[addrAt:addrAt+n]...)}
}

func words(b []byte) []uint32 {
	var w []uint32
	for ; len(b) >= 4; b = b[4:] {
		w = append(w, binary.NativeEndian.Uint32(b))
	}
	return w
}
