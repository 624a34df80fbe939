package sockdiag

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// States of a unix socket: the kernel uses those of TCP.
const (
	Established = 1
	Closed      = 7
	Listen      = 10
)

// Unix is one unix socket.
type Unix struct {
	Ino   uint32
	Type  uint8 // SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
	State uint8
	// Shutdown has bit 0 set when nothing more is received, bit 1 when nothing more is sent.
	Shutdown uint8
	// Name is the address it is bound to, from sun_path on and with the NUL that ends a path; empty for none. An
	// abstract name begins with NUL.
	Name []byte
	// Peer is the inode number of the socket it is connected to; 0 for none, one that is closed, or one that has not
	// been accepted.
	Peer uint32
	// Icons are the inode numbers of sockets whose connections wait to be accepted; 0 for closed ones. Listeners only.
	Icons []uint32
	// RQueue is what waits to be read: bytes, of a datagram socket those of the first message, of a listener the
	// number of connections.
	RQueue uint32
	// WQueue is what was sent and not read yet, in bytes of memory; of a listener its backlog.
	WQueue uint32
}

// Sizes of struct unix_diag_req and struct unix_diag_msg.
const (
	unixDiagReqSize = 24
	unixDiagMsgSize = 16
)

// Attributes, and which of them are asked for (linux/unix_diag.h).
const (
	attrName = iota
	_
	attrPeer
	attrIcons
	attrRQLen
	_
	attrUnixShutdown

	showName  = 1 << 0
	showPeer  = 1 << 2
	showIcons = 1 << 3
	showRQLen = 1 << 4
)

// unixRequest is struct unix_diag_req for sockets in all states, or for the one with an inode number.
func unixRequest(ino uint32) []byte {
	req := make([]byte, unixDiagReqSize)
	req[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0))
	binary.NativeEndian.PutUint32(req[8:], ino)
	binary.NativeEndian.PutUint32(req[12:], showName|showPeer|showIcons|showRQLen)
	binary.NativeEndian.PutUint64(req[16:], ^uint64(0)) // whatever its cookie
	return req
}

// UnixSockets lists the unix sockets of the network namespace that netNS is a descriptor of. The kernel continues a long
// list by position, so one may be missing where others have ended meanwhile: see [UnixSocket].
func UnixSockets(netNS int) ([]Unix, error) {
	var list []Unix
	err := dump(netNS, unixRequest(0), func(msg []byte) error {
		u, err := parseUnix(msg)
		list = append(list, u)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list unix sockets: %w (is the module unix_diag there?)", err)
	}
	return list, nil
}

// UnixSocket looks up the unix socket with an inode number in the network namespace that netNS is a descriptor of.
// ENOENT says that it is not there.
func UnixSocket(netNS int, ino uint32) (u Unix, err error) {
	err = ask(netNS, 0, unixRequest(ino), func(msg []byte) (err error) {
		u, err = parseUnix(msg)
		return err
	})
	if err != nil {
		return u, fmt.Errorf("look up unix socket %d: %w", ino, err)
	}
	return u, nil
}

// parseUnix reads struct unix_diag_msg and the attributes behind it.
func parseUnix(msg []byte) (Unix, error) {
	if len(msg) < unixDiagMsgSize {
		return Unix{}, fmt.Errorf("an answer of %d bytes", len(msg))
	}
	word := binary.NativeEndian.Uint32
	u := Unix{Type: msg[1], State: msg[2], Ino: word(msg[4:])}
	attrs, err := nl.ParseRouteAttr(msg[unixDiagMsgSize:])
	if err != nil {
		return u, err
	}
	for _, a := range attrs {
		v := a.Value
		switch {
		case a.Attr.Type == attrName:
			u.Name = append([]byte(nil), v...)
		case a.Attr.Type == attrUnixShutdown && len(v) >= 1:
			u.Shutdown = v[0]
		case a.Attr.Type == attrPeer && len(v) >= 4:
			u.Peer = word(v)
		case a.Attr.Type == attrIcons:
			for ; len(v) >= 4; v = v[4:] {
				u.Icons = append(u.Icons, word(v))
			}
		case a.Attr.Type == attrRQLen && len(v) >= 8:
			u.RQueue, u.WQueue = word(v), word(v[4:])
		}
	}
	return u, nil
}
