package image

import (
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// NetlinkExtra is what criu's format has no place for of a netlink socket. It rides in netlink_sk_entry as fields that the
// description does not name, and criu skips them.
type NetlinkExtra struct {
	// Options has bit N set where option N of level SOL_NETLINK is on.
	Options uint32
	// Datagram says that the socket was made with SOCK_DGRAM. The kernel treats both kinds alike.
	Datagram bool
}

const (
	netlinkOptions  = 7001
	netlinkDatagram = 7002
)

// NetlinkOptions are the options of level SOL_NETLINK that a program can set and a socket, or the kernel's list, tells.
var NetlinkOptions = []int{
	unix.NETLINK_PKTINFO, unix.NETLINK_BROADCAST_ERROR, unix.NETLINK_NO_ENOBUFS, unix.NETLINK_LISTEN_ALL_NSID,
	unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK,
}

// SetNetlinkExtra notes what is not as in a fresh socket.
func SetNetlinkExtra(e *sk_netlink.NetlinkSkEntry, x NetlinkExtra) {
	setNumber(e, netlinkOptions, uint64(x.Options))
	if x.Datagram {
		setNumber(e, netlinkDatagram, 1)
	}
}

// GetNetlinkExtra reads what SetNetlinkExtra noted; of a socket that criu stored there is nothing.
func GetNetlinkExtra(e *sk_netlink.NetlinkSkEntry) (x NetlinkExtra) {
	eachNumber(e, func(num protowire.Number, v uint64) {
		switch num {
		case netlinkOptions:
			x.Options = uint32(v)
		case netlinkDatagram:
			x.Datagram = v != 0
		}
	})
	return x
}
