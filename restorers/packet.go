package restorers

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/sockopt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"golang.org/x/sys/unix"
)

// Packet restores packet sockets.
//
// The task that owns a socket makes it, deaf at first (of protocol 0), and gives it options, memberships and rings. The tool
// binds it when all descriptors of the tree have been made, so that it hears nothing of what happens on the way, and puts it
// into its fanout group, for which it has to be bound. Rings are mapped last of all, see [FilePlan.EmitRings].
type Packet struct{}

// packetSockets are all of the set.
type packetSockets struct{ list []*packetSocket }

type packetSocket struct {
	*packet_sock.PacketSockEntry
	madeSocket
	extra image.PacketExtra
}

type packetKey struct{}

const (
	maxPacketAddr  = 32      // MAX_ADDR_LEN
	maxMemberships = 1 << 16 // of one socket; net.core.optmem_max lets it have far fewer
)

// Plan checks the entry and notes the socket.
func (Packet) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetPsk() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no psk", e.GetId())
	}
	s := &packetSocket{PacketSockEntry: e.GetPsk(), extra: image.GetPacketExtra(e.GetPsk())}
	if err := s.check(); err != nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d, packet socket: %w", e.GetId(), err)
	}
	if err := p.Set.inNetNS(s.GetNsId()); err != nil {
		return nil, err
	}
	all, err := Shared(p, packetKey{}, func() (*packetSockets, error) {
		all := &packetSockets{}
		p.plan.after(Watch, all)
		return all, nil
	})
	if err != nil {
		return nil, err
	}
	all.list = append(all.list, s)
	return s, nil
}

// check refuses what no kernel would take.
func (s *packetSocket) check() error {
	switch s.GetType() {
	case unix.SOCK_RAW, unix.SOCK_DGRAM, unix.SOCK_PACKET:
	default:
		return fmt.Errorf("type %d", s.GetType())
	}
	switch {
	case s.GetProtocol() > 1<<16-1:
		return fmt.Errorf("protocol %#x", s.GetProtocol())
	case s.GetVersion() > unix.TPACKET_V3:
		return fmt.Errorf("version %d", s.GetVersion())
	case len(s.Mclist) > maxMemberships:
		return fmt.Errorf("%d memberships", len(s.Mclist))
	}
	for _, m := range s.Mclist {
		if len(m.GetAddr()) > maxPacketAddr || m.GetType() > unix.PACKET_MR_UNICAST {
			return fmt.Errorf("a membership of type %d with an address of %d bytes", m.GetType(), len(m.GetAddr()))
		}
	}
	return checkSocketOptions(s.Opts)
}

func (s *packetSocket) Needs() []uint32 { return nil }

func (s *packetSocket) Emit(lv Level, b *remote.Builder, slots *Slots) error {
	switch lv {
	case Open:
		protocol := uint32(0)
		if s.GetType() == unix.SOCK_PACKET {
			protocol = s.GetProtocol() // such a socket cannot be given one later
		}
		s.emitMake(b, slots, s, unix.AF_PACKET, s.GetType(), protocol)
	case Attach:
		s.emitOptions(b, slots.Number(s.GetId()))
	}
	return nil
}

// emitOptions sets options in an order in which the kernel takes them: rings come last.
func (s *packetSocket) emitOptions(b *remote.Builder, fd int) {
	emitSocketOptions(b, fd, s.Opts)
	setOption(b, fd, unix.SO_REUSEADDR, uint32(flag(s.Opts.GetReuseaddr())), 0)
	for _, o := range []struct {
		name  int
		value uint32
	}{
		{unix.PACKET_VERSION, s.GetVersion()}, {unix.PACKET_RESERVE, s.GetReserve()}, {unix.PACKET_TIMESTAMP, s.GetTimestamp()},
		{unix.PACKET_COPY_THRESH, s.GetCopyThresh()}, {unix.PACKET_AUXDATA, uint32(flag(s.GetAuxData()))},
		{unix.PACKET_ORIGDEV, uint32(flag(s.GetOrigDev()))}, {unix.PACKET_VNET_HDR, uint32(flag(s.GetVnetHdr()))},
		{image.PacketVnetHdrSz, s.extra.VnetHeader}, {unix.PACKET_LOSS, uint32(flag(s.GetLoss()))},
	} {
		if o.value != 0 { // else it is what a fresh socket has
			setNumber(b, fd, unix.SOL_PACKET, o.name, int(o.value))
		}
	}
	for _, name := range image.PacketOptions {
		if s.extra.Options>>name&1 != 0 {
			setNumber(b, fd, unix.SOL_PACKET, name, 1)
		}
	}
	for _, m := range s.Mclist {
		req := binary.NativeEndian.AppendUint32(nil, m.GetIndex()) // struct packet_mreq, with room for long addresses
		req = binary.NativeEndian.AppendUint16(req, uint16(m.GetType()))
		req = binary.NativeEndian.AppendUint16(req, uint16(len(m.GetAddr())))
		req = append(req, m.GetAddr()...)
		req = append(req, make([]byte, maxPacketAddr-len(m.GetAddr()))...)
		setPacket(b, fd, unix.PACKET_ADD_MEMBERSHIP, req)
	}
	emitPacketRing(b, fd, unix.PACKET_RX_RING, s.RxRing)
	emitPacketRing(b, fd, unix.PACKET_TX_RING, s.TxRing)
}

// emitPacketRing makes a ring; struct tpacket_req3 begins with what older versions take.
func emitPacketRing(b *remote.Builder, fd, name int, r *packet_sock.PacketRing) {
	if r != nil {
		setPacket(b, fd, name, words32([]uint32{r.GetBlockSize(), r.GetBlockNr(), r.GetFrameSize(), r.GetFrameNr(),
			r.GetRetireTmo(), r.GetSizeofPriv(), r.GetFeatures()}))
	}
}

func setPacket(b *remote.Builder, fd, name int, value []byte) {
	b.Call(unix.SYS_SETSOCKOPT, remote.Imm(fd), remote.Imm(unix.SOL_PACKET), remote.Imm(name), b.Bytes(value), remote.Imm(len(value))).Must().Discard()
}

// fill binds the sockets. Those of a fanout group join it one after the other.
func (all *packetSockets) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	return completeSockets(ctx, all.list, open, (*packetSocket).bind)
}

func (*packetSocket) title() string { return "packet socket" }

// bind lets the socket hear.
func (s *packetSocket) bind(fd int) error {
	if s.GetType() == unix.SOCK_PACKET {
		return s.bindByName(fd)
	}
	addr := &unix.SockaddrLinklayer{Protocol: uint16(s.GetProtocol()), Ifindex: int(s.GetIfindex())}
	if s.GetProtocol() != 0 || s.GetIfindex() != 0 {
		if err := unix.Bind(fd, addr); err != nil {
			return fmt.Errorf("bind to device %d: %w", s.GetIfindex(), err)
		}
	}
	if s.Fanout == nil {
		return nil
	}
	return sockopt.SetInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, int(int32(s.GetFanout())))
}

// bindByName binds a socket of the oldest kind, which goes by names of devices.
func (s *packetSocket) bindByName(fd int) error {
	if s.GetIfindex() == 0 {
		return nil
	}
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	req.SetUint32(s.GetIfindex())
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return fmt.Errorf("name of device %d: %w", s.GetIfindex(), err)
	}
	if err := sockopt.BindTo(fd, append(binary.NativeEndian.AppendUint16(nil, unix.AF_PACKET), deviceName(req.Name())...)); err != nil {
		return fmt.Errorf("bind to device %s: %w", req.Name(), err)
	}
	return nil
}

// deviceName is a name as struct sockaddr has room for it.
func deviceName(name string) []byte {
	const room = 14
	b := append([]byte(name), bytes.Repeat([]byte{0}, room)...)[:room]
	b[room-1] = 0
	return b
}
