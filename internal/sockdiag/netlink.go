package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Netlink is what only the kernel's list tells of a netlink socket.
type Netlink struct {
	// State is Established for a socket that takes messages from its peer alone, else Closed.
	State uint8
	// Dumping says that the kernel is in the middle of an answer that has several parts (Linux 4.6).
	Dumping bool
	// ListenAllNSID is the option NETLINK_LISTEN_ALL_NSID, which the socket itself tells only of late.
	ListenAllNSID bool
}

// Layout of struct netlink_diag_req and struct netlink_diag_msg, attributes and flags (linux/netlink_diag.h).
const (
	netlinkReqSize = 20
	netlinkShow    = 8
	netlinkAll     = 0xff // all protocols

	netlinkMsgSize = 28
	netlinkState   = 3
	netlinkInode   = 16

	netlinkFlags     = 4
	netlinkShowFlags = 1 << 3
	flagDumping      = 1 << 0
	flagListenAll    = 1 << 4
)

// NetlinkSockets lists the netlink sockets, by inode number, of the network namespace that netNS is a descriptor of: those
// that are bound. A kernel that has no lister for them (netlink_diag, Linux 3.10) lists none.
func NetlinkSockets(netNS int) (map[uint32]Netlink, error) {
	all := map[uint32]Netlink{}
	req := make([]byte, netlinkReqSize)
	req[0], req[1] = unix.AF_NETLINK, netlinkAll
	binary.NativeEndian.PutUint32(req[netlinkShow:], netlinkShowFlags)
	err := dump(netNS, req, func(msg []byte) error {
		if len(msg) < netlinkMsgSize {
			return fmt.Errorf("an answer of %d bytes", len(msg))
		}
		s := Netlink{State: msg[netlinkState]}
		attrs, err := nl.ParseRouteAttr(msg[netlinkMsgSize:])
		if err != nil {
			return err
		}
		for _, a := range attrs {
			if a.Attr.Type == netlinkFlags && len(a.Value) >= 4 {
				flags := binary.NativeEndian.Uint32(a.Value)
				s.Dumping, s.ListenAllNSID = flags&flagDumping != 0, flags&flagListenAll != 0
			}
		}
		all[binary.NativeEndian.Uint32(msg[netlinkInode:])] = s
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list netlink sockets: %w", err)
	}
	return all, nil
}
