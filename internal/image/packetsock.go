package image

import (
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// PacketExtra is what criu's format has no place for of a packet socket. It rides in packet_sock_entry as fields that the
// description does not name, and criu skips them.
type PacketExtra struct {
	// Options has bit N set where option N of level SOL_PACKET is on.
	Options uint32
	// VnetHeader is the length of the virtio header before each packet, in bytes (PACKET_VNET_HDR_SZ, Linux 6.4); 0 for
	// none, or the usual one.
	VnetHeader uint32
}

const (
	packetOptions    = 7001
	packetVnetHeader = 7002
)

// PacketVnetHdrSz is PACKET_VNET_HDR_SZ.
const PacketVnetHdrSz = 24

// PacketOptions are those options of level SOL_PACKET that criu's format does not have: on or off.
var PacketOptions = []int{unix.PACKET_TX_HAS_OFF, unix.PACKET_QDISC_BYPASS, unix.PACKET_IGNORE_OUTGOING}

// SetPacketExtra notes what is not as in a fresh socket.
func SetPacketExtra(e *packet_sock.PacketSockEntry, x PacketExtra) {
	setNumber(e, packetOptions, uint64(x.Options))
	setNumber(e, packetVnetHeader, uint64(x.VnetHeader))
}

// GetPacketExtra reads what SetPacketExtra noted; of a socket that criu stored there is nothing.
func GetPacketExtra(e *packet_sock.PacketSockEntry) (x PacketExtra) {
	eachNumber(e, func(num protowire.Number, v uint64) {
		switch num {
		case packetOptions:
			x.Options = uint32(v)
		case packetVnetHeader:
			x.VnetHeader = uint32(v)
		}
	})
	return x
}
