package features

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The probes of netlink ask one question each and look at the kind of answer only. They use plain sockets, so that
// asking the registry does not load a netlink library into every run.

// netlink sends one message and returns nil if the answer is not an error.
func netlink(proto, kind, flags int, body []byte) error {
	return withSocket(unix.AF_NETLINK, unix.SOCK_RAW, proto, func(fd int) error {
		msg := make([]byte, unix.SizeofNlMsghdr+len(body))
		hdr := (*unix.NlMsghdr)(unsafe.Pointer(&msg[0]))
		*hdr = unix.NlMsghdr{Len: uint32(len(msg)), Type: uint16(kind), Flags: uint16(unix.NLM_F_REQUEST | flags), Seq: 1}
		copy(msg[unix.SizeofNlMsghdr:], body)
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		return answer(fd)
	})
}

// answer reads the first messages that come back. The kernel answers at once; the time limit is for sandboxes.
func answer(fd int) error {
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return os.NewSyscallError("setsockopt(SO_RCVTIMEO)", err)
	}
	buf := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil || len(msgs) == 0 {
		return errors.New("netlink: no answer that makes sense")
	}
	if m := msgs[0]; (m.Header.Type == unix.NLMSG_ERROR || m.Header.Type == unix.NLMSG_DONE) && len(m.Data) >= 4 {
		if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
			return unix.Errno(-code)
		}
	}
	return nil
}

// attr is one netlink attribute with a number.
func attr(kind int, value uint32) []byte {
	b := binary.NativeEndian.AppendUint16(nil, 8)
	b = binary.NativeEndian.AppendUint16(b, uint16(kind))
	return binary.NativeEndian.AppendUint32(b, value)
}

const sockDiagByFamily = 20

// diagInet asks for all sockets of a protocol that are in no state at all: the answer is short, or says that the kernel
// cannot list them.
func diagInet(family, proto uint8) error {
	req := make([]byte, 56) // struct inet_diag_req_v2
	req[0], req[1] = family, proto
	return netlink(unix.NETLINK_SOCK_DIAG, sockDiagByFamily, unix.NLM_F_DUMP, req)
}

// diagOther is the same for a family whose request has its states at a place of its own.
func diagOther(family uint8, size int) error {
	req := make([]byte, size)
	req[0] = family
	return netlink(unix.NETLINK_SOCK_DIAG, sockDiagByFamily, unix.NLM_F_DUMP, req)
}

func probeSockDiag() error {
	return errors.Join(
		diagInet(unix.AF_INET, unix.IPPROTO_TCP),
		diagInet(unix.AF_INET, unix.IPPROTO_UDP),
		diagOther(unix.AF_UNIX, 24),   // struct unix_diag_req
		diagOther(unix.AF_PACKET, 20), // struct packet_diag_req
		diagOther(unix.AF_NETLINK, 20),
	)
}

// probeNSID asks for the id of our own network namespace.
func probeNSID() error {
	const netnsaPid = 2
	body := append(make([]byte, 4), attr(netnsaPid, uint32(os.Getpid()))...) // struct rtgenmsg, padded
	return netlink(unix.NETLINK_ROUTE, unix.RTM_GETNSID, 0, body)
}

// probeNewIfindex gives a wrong index to a device that stays where it is: a kernel that knows the attribute finds the
// index out of range, another one takes no notice of it.
func probeNewIfindex() error {
	const loopback = 1
	body := make([]byte, unix.SizeofIfInfomsg)
	(*unix.IfInfomsg)(unsafe.Pointer(&body[0])).Index = loopback
	body = append(body, attr(unix.IFLA_NEW_IFINDEX, ^uint32(0))...)
	return refusedWith("RTM_SETLINK", netlink(unix.NETLINK_ROUTE, unix.RTM_SETLINK, unix.NLM_F_ACK, body), unix.ERANGE)
}

// probeNftables asks for the generation of the rule set.
func probeNftables() error {
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	return netlink(unix.NETLINK_NETFILTER, getGen, 0, make([]byte, 4)) // struct nfgenmsg
}
