package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Tracked is a kind of what connection tracking remembers.
type Tracked struct {
	Pattern string // of the name of the image
	list    int    // type of the message that asks for all
	answer  int    // and of one that tells of one, or makes it
}

// Trackings are the connections, and those that are expected.
var Trackings = []Tracked{
	{"netns-ct-%d.img", unix.NFNL_SUBSYS_CTNETLINK<<8 | 1, unix.NFNL_SUBSYS_CTNETLINK << 8},
	{"netns-exp-%d.img", unix.NFNL_SUBSYS_CTNETLINK_EXP<<8 | 1, unix.NFNL_SUBSYS_CTNETLINK_EXP << 8},
}

// List writes what is tracked, as messages of netlink. A kernel that tracks nothing has nothing.
func (t Tracked) List(w io.Writer) error {
	req := nl.NewNetlinkRequest(t.list, unix.NLM_F_DUMP)
	req.AddRawData(make([]byte, 4)) // struct nfgenmsg: of all families
	var bad error
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		_, bad = w.Write(Message(uint16(t.answer), msg))
		return bad == nil
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	if err := errors.Join(err, bad); err != nil {
		return fmt.Errorf("tracked connections: %w", err)
	}
	return nil
}

// sequence is the number criu gives its messages. It sends those of an image as they are, and waits for an answer to this
// number.
const sequence = 24680

// Message puts the head of a message of netlink before its body.
func Message(kind uint16, body []byte) []byte {
	order := binary.NativeEndian
	b := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = order.AppendUint16(b, kind)
	b = order.AppendUint16(b, unix.NLM_F_MULTI)
	b = order.AppendUint32(b, sequence)
	b = order.AppendUint32(b, 0) // nobody's
	return append(b, body...)
}

// maxMessage bounds what is taken for a message, in bytes.
const maxMessage = 1 << 20

// EachMessage goes over messages of netlink that stand one after the other, aligned to align bytes.
func EachMessage(r io.Reader, align int, do func(kind uint16, body []byte) error) error {
	for n := 0; ; n++ {
		var head [unix.SizeofNlMsghdr]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		size := binary.NativeEndian.Uint32(head[:])
		if size < unix.SizeofNlMsghdr || size > maxMessage {
			return fmt.Errorf("message %d has %d bytes", n, size)
		}
		body := make([]byte, size-unix.SizeofNlMsghdr)
		if _, err := io.ReadFull(r, body); err != nil {
			return fmt.Errorf("message %d of %d bytes: %w", n, size, err)
		}
		if _, err := io.CopyN(io.Discard, r, int64((align-int(size)%align)%align)); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
		if err := do(binary.NativeEndian.Uint16(head[4:]), body); err != nil {
			return fmt.Errorf("message %d: %w", n, err)
		}
	}
}

// Restore makes the kernel remember what List has written. Packets that come when nobody looked are taken for what they are:
// what the windows of TCP allow has changed meanwhile. criu 4.2 stores connections in place of expected ones: these are
// known by then.
func (t Tracked) Restore(r io.Reader) error {
	return EachMessage(r, 1, func(kind uint16, body []byte) error {
		switch int(kind) {
		case t.answer:
		case Trackings[0].answer:
			return nil
		default:
			return fmt.Errorf("type %#x", kind)
		}
		beLiberal(body)
		req := nl.NewNetlinkRequest(t.answer, unix.NLM_F_ACK|unix.NLM_F_CREATE)
		req.AddRawData(body)
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		return err
	})
}

// Attributes of a tracked connection (linux/netfilter/nfnetlink_conntrack.h), and a flag of one of TCP.
const (
	ctaProtoInfo        = 4
	ctaProtoInfoTCP     = 1
	ctaTCPFlagsOriginal = 4
	ctaTCPFlagsReply    = 5
	tcpFlagBeLiberal    = 0x08
	sizeofNfgenmsg      = 4
	attrTypeMask        = 0x3fff
	sizeofAttr          = 4
)

// beLiberal sets the flag in both directions of a connection of TCP, in place.
func beLiberal(body []byte) {
	if len(body) < sizeofNfgenmsg {
		return
	}
	eachAttr(body[sizeofNfgenmsg:], func(kind uint16, info []byte) {
		if kind != ctaProtoInfo {
			return
		}
		eachAttr(info, func(kind uint16, tcp []byte) {
			if kind != ctaProtoInfoTCP {
				return
			}
			eachAttr(tcp, func(kind uint16, flags []byte) {
				if (kind == ctaTCPFlagsOriginal || kind == ctaTCPFlagsReply) && len(flags) >= 2 {
					flags[0] |= tcpFlagBeLiberal // struct nf_ct_tcp_flags: flags and which of them count
					flags[1] |= tcpFlagBeLiberal
				}
			})
		})
	})
}

// eachAttr goes over attributes, as far as they make sense.
func eachAttr(b []byte, do func(kind uint16, value []byte)) {
	for len(b) >= sizeofAttr {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&attrTypeMask
		if size < sizeofAttr || size > len(b) {
			return
		}
		do(kind, b[sizeofAttr:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}
