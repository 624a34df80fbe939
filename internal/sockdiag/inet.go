// Package sockdiag asks the kernel for the sockets of a network namespace.
//
// One dump of a protocol answers for all sockets of it; what a single socket can tell itself by getsockopt is not asked
// here.
//
// Kernel interfaces: NETLINK_SOCK_DIAG (Linux 3.3; UNIX_DIAG_SHUTDOWN 3.8, INET_DIAG_SHUTDOWN 4.3).
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Inet is a socket of the IP protocols.
type Inet struct {
	State    uint8 // TCP_LISTEN and so on, for other protocols as well
	Shutdown uint8 // RCV_SHUTDOWN 1, SEND_SHUTDOWN 2
	RQueue   uint32
	WQueue   uint32
}

// Layout of struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h).
const (
	inetReqSize  = 56
	inetMsgSize  = 72
	inetState    = 1
	inetRQueue   = 56
	inetWQueue   = 60
	inetInode    = 68
	inetShutdown = 8
)

// DumpInet lists the sockets of a protocol by inode number, in the network namespace that netNS is a descriptor of. Those
// that are neither bound nor connected are not known to the kernel's tables and not listed. A protocol the kernel has no
// lister for has no sockets here.
func DumpInet(netNS int, family, protocol uint8) (map[uint32]Inet, error) {
	all := map[uint32]Inet{}
	req := make([]byte, inetReqSize)
	req[0], req[1] = family, protocol
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // all states
	err := dump(netNS, req, func(msg []byte) error {
		if len(msg) < inetMsgSize {
			return fmt.Errorf("an answer of %d bytes", len(msg))
		}
		word := func(at int) uint32 { return binary.NativeEndian.Uint32(msg[at:]) }
		s := Inet{State: msg[inetState], RQueue: word(inetRQueue), WQueue: word(inetWQueue)}
		attrs, err := nl.ParseRouteAttr(msg[inetMsgSize:])
		if err != nil {
			return err
		}
		for _, a := range attrs {
			if a.Attr.Type == inetShutdown && len(a.Value) > 0 {
				s.Shutdown = a.Value[0]
			}
		}
		all[word(inetInode)] = s
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return all, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sockets of family %d, protocol %d: %w", family, protocol, err)
	}
	return all, nil
}

// dump sends a request for all sockets that match, in the network namespace netNS is a descriptor of, and hands over
// each answer.
func dump(netNS int, request []byte, each func(msg []byte) error) error {
	err := ask(netNS, unix.NLM_F_DUMP, request, each)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // sockets of others came or went; those of the stopped tree did not
	}
	return err
}

// ask sends a request with flags, in the network namespace netNS is a descriptor of, and hands over each answer.
func ask(netNS, flags int, request []byte, each func(msg []byte) error) error {
	s, err := nl.GetNetlinkSocketAt(netns.NsHandle(netNS), netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: s}}
	req.AddRawData(request)
	var bad error
	err = req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		bad = each(msg)
		return bad == nil
	})
	return errors.Join(err, bad)
}
