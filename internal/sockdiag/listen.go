package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Listener is a TCP socket that listens, or one of MPTCP.
type Listener struct {
	Inode   uint32
	Local   netip.AddrPort
	Waiting uint32 // connections that have not been accepted yet
}

const (
	inetLocalPort = 4
	inetLocalAddr = 8

	// reqProtocol is an attribute of requests: a protocol of more than eight bits (Linux 5.9).
	reqProtocol = 3

	// ownNetNS stands for the network namespace of the calling thread.
	ownNetNS = -1
)

// Listeners lists all sockets of the calling thread's network namespace that listen for TCP connections. Those of MPTCP are listed
// since Linux 5.19.
func Listeners() ([]Listener, error) {
	var list []Listener
	for _, protocol := range []uint32{unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
		err := dumpTCP(protocol, unix.BPF_TCP_LISTEN, func(l Listener) { list = append(list, l) })
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			continue // the kernel has no lister for it
		}
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
	}
	return list, nil
}

// HalfOpen lists by local port how many TCP connections wait for the last step of their handshake.
func HalfOpen() (map[uint16]int, error) {
	byPort := map[uint16]int{}
	err := dumpTCP(unix.IPPROTO_TCP, unix.BPF_TCP_SYN_RECV, func(l Listener) { byPort[l.Local.Port()]++ })
	if err != nil {
		return nil, fmt.Errorf("list half-open connections: %w", err)
	}
	return byPort, nil
}

// dumpTCP hands over the sockets of both versions of IP in one state.
func dumpTCP(protocol uint32, state uint, each func(Listener)) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := make([]byte, inetReqSize, inetReqSize+8)
		req[0], req[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(req[4:], 1<<state)
		if protocol > 0xff {
			req = binary.NativeEndian.AppendUint16(req, 8)
			req = binary.NativeEndian.AppendUint16(req, reqProtocol)
			req = binary.NativeEndian.AppendUint32(req, protocol)
		}
		size := 4
		if family == unix.AF_INET6 {
			size = 16
		}
		err := dump(ownNetNS, req, func(msg []byte) error {
			if len(msg) < inetMsgSize {
				return fmt.Errorf("an answer of %d bytes", len(msg))
			}
			addr, _ := netip.AddrFromSlice(msg[inetLocalAddr : inetLocalAddr+size])
			each(Listener{
				Inode: binary.NativeEndian.Uint32(msg[inetInode:]), Waiting: binary.NativeEndian.Uint32(msg[inetRQueue:]),
				Local: netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(msg[inetLocalPort:])),
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
