package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"cryo/internal/image"
	"cryo/internal/sockdiag"
	"cryo/internal/sockopt"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Packet collects packet sockets: what they are bound to, memberships, the shape of rings, the fanout group.
//
// The kernel's list tells it all (packet_diag, Linux 3.7); younger options the socket tells itself. Packets that wait, in
// the queue or in a ring, are lost, as packets may be: a ring begins with its first frame again. Rings that are mapped
// are found by [Memory], which asks for the socket by its inode.
type Packet struct{}

// Match takes open sockets of the family.
func (Packet) Match(p *Probe) bool { return p.Domain == unix.AF_PACKET }

// packetSockets is what is known of packet sockets.
type packetSockets struct {
	known map[uint32]*sockdiag.Packet // that the kernel lists, by inode number
	ids   map[uint32]uint32           // of those that are collected, by inode number
}

// Collect makes a packet_sock_entry.
func (Packet) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	ns, number, err := p.netNS(f.env, fd, "a packet socket")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if f.packets.known == nil {
		if f.packets.known, err = sockdiag.PacketSockets(int(ns.Fd())); err != nil {
			return nil, err
		}
		f.packets.ids = map[uint32]uint32{}
	}
	s := f.packets.known[uint32(p.Stat.Ino)]
	if s == nil {
		return nil, fmt.Errorf("%s: the kernel does not list packet socket %d", p.Where(), p.Stat.Ino)
	}
	e := packetEntry(s, p, id)
	if number != 0 {
		e.NsId = proto.Uint32(number)
	}
	if e.Opts, err = p.socketOptions(); err != nil {
		return nil, err
	}
	if err := packetExtra(fd, e); err != nil {
		return nil, err
	}
	if e.Fanout, err = fanout(fd, s); err != nil {
		return nil, err
	}
	f.packets.ids[uint32(p.Stat.Ino)] = id
	return &fdinfo.FileEntry{Psk: e}, refusePacket(p, s, e)
}

// packetEntry is what the kernel's list says of a socket, as images have it.
func packetEntry(s *sockdiag.Packet, p *Probe, id uint32) *packet_sock.PacketSockEntry {
	flag := func(bit uint32) *bool { return proto.Bool(s.Flags&bit != 0) }
	// The protocol is what socket(2) takes: in network byte order.
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, s.Protocol))
	e := &packet_sock.PacketSockEntry{
		Id: proto.Uint32(id), Type: proto.Uint32(uint32(s.Type)), Protocol: proto.Uint32(uint32(protocol)), Flags: proto.Uint32(p.Flags),
		Ifindex: &s.Index, Fown: p.Owner, Version: &s.Version, Reserve: &s.Reserve, Timestamp: &s.Timestamp, CopyThresh: &s.CopyThreshold,
		AuxData: flag(sockdiag.PacketAuxdata), OrigDev: flag(sockdiag.PacketOrigDev), VnetHdr: flag(sockdiag.PacketVnetHdr),
		Loss: flag(sockdiag.PacketLoss), RxRing: packetRing(s.RX), TxRing: packetRing(s.TX),
	}
	for _, m := range s.Members {
		entry := &packet_sock.PacketMclist{Index: proto.Uint32(m.Index), Type: proto.Uint32(uint32(m.Type)), Addr: []byte{}}
		if m.Type == unix.PACKET_MR_MULTICAST || m.Type == unix.PACKET_MR_UNICAST {
			entry.Addr = m.Addr
		}
		for range m.Count { // each time it was joined it has to be left
			e.Mclist = append(e.Mclist, entry)
		}
	}
	return e
}

func packetRing(r *sockdiag.PacketRing) *packet_sock.PacketRing {
	if r == nil {
		return nil
	}
	return &packet_sock.PacketRing{BlockSize: &r.BlockSize, BlockNr: &r.Blocks, FrameSize: &r.FrameSize, FrameNr: &r.Frames,
		RetireTmo: &r.RetireTimeout, SizeofPriv: &r.PrivateSize, Features: &r.Features}
}

// packetExtra asks for the options that neither the kernel's list nor criu's format have.
func packetExtra(fd int, e *packet_sock.PacketSockEntry) error {
	if e.GetType() == unix.SOCK_PACKET {
		return nil // it has none
	}
	var x image.PacketExtra
	for _, name := range image.PacketOptions {
		v, err := sockopt.Int(fd, unix.SOL_PACKET, name)
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
		if v != 0 {
			x.Options |= 1 << name
		}
	}
	const usualHeader = 10 // struct virtio_net_hdr
	v, err := sockopt.Int(fd, unix.SOL_PACKET, image.PacketVnetHdrSz)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	if v != usualHeader {
		x.VnetHeader = uint32(v)
	}
	image.SetPacketExtra(e, x)
	return nil
}

// fanoutUnique is PACKET_FANOUT_FLAG_UNIQUEID where the socket tells it: the number has been chosen since.
const fanoutUnique = 0x20 << 24

// fanout is the group the socket is in, nil for none, with its flags, which the kernel's list leaves out.
func fanout(fd int, s *sockdiag.Packet) (*uint32, error) {
	if s.Fanout == nil {
		return nil, nil
	}
	v, err := sockopt.Int(fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return nil, err
	}
	return proto.Uint32(uint32(v) &^ fanoutUnique), nil
}

// refusePacket says what cannot be kept.
func refusePacket(p *Probe, s *sockdiag.Packet, e *packet_sock.PacketSockEntry) error {
	const kind = 16 // where the kind of a fanout group begins
	switch fanout := e.GetFanout() >> kind & 0xff; {
	case int32(s.Index) < 0:
		return p.Obstacle("a packet socket of a device that has gone", "close it before the dump")
	case e.Fanout != nil && (fanout == unix.PACKET_FANOUT_CBPF || fanout == unix.PACKET_FANOUT_EBPF):
		return p.Obstacle("a packet socket in a fanout group with a program, which the kernel does not show", "close it before the dump")
	}
	return nil
}

// ring names the socket behind a mapping of its rings for the images. A mapping that is not all of them cannot be made
// again: the kernel maps them whole.
func (k *packetSockets) ring(p *Obstacles, t *Task, mp *vma.Mapping, inode uint64) (id uint32) {
	where := "mapping " + mp.Link()
	s, id := k.known[uint32(inode)], k.ids[uint32(inode)]
	switch {
	case s == nil || id == 0:
		p.Add(Obstacle{Pid: t.Pid, Where: where, What: "memory of a socket (" + mp.Name + ") that no descriptor of the task leads to"})
		return 0
	case mp.Offset != 0 || mp.Len() != s.RX.Len()+s.TX.Len():
		p.Add(Obstacle{Pid: t.Pid, Where: where, What: "a part of the rings of a packet socket, which can be mapped only whole"})
		return 0
	case s.RX != nil:
		slog.Warn(fmt.Sprintf("Task %d, %s: the ring of a packet socket will begin with its first frame again", t.Pid, where))
	}
	return id
}
