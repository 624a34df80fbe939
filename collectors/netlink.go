package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"cryo/internal/image"
	"cryo/internal/poll"
	"cryo/internal/sockdiag"
	"cryo/internal/sockopt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Netlink collects netlink sockets of every protocol.
//
// A socket tells its addresses, groups (NETLINK_LIST_MEMBERSHIPS, Linux 4.2) and options itself; whether it takes messages
// from its peer alone, and whether an answer is on the way, the kernel's list tells (netlink_diag, Linux 3.10). Messages
// that wait in its queue cannot be kept: nobody but the kernel could send them again. Neither can what the kernel keeps for
// the number of a socket beside it, queues and logs of the packet filter.
type Netlink struct{}

// Match takes open sockets of the family.
func (Netlink) Match(p *Probe) bool { return p.Domain == unix.AF_NETLINK }

// netlinkSocket is one that is being collected.
type netlinkSocket struct {
	*Probe
	fd    int // the tool's own
	known sockdiag.Netlink
	entry *sk_netlink.NetlinkSkEntry
}

// Collect makes a netlink_sk_entry.
func (Netlink) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	ns, number, err := p.netNS(f.env, fd, "a netlink socket")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	s := &netlinkSocket{Probe: p, fd: fd, entry: &sk_netlink.NetlinkSkEntry{
		Id: proto.Uint32(id), Ino: proto.Uint32(uint32(p.Stat.Ino)), Flags: proto.Uint32(p.Flags), Fown: p.Owner,
	}}
	if number != 0 {
		s.entry.NsId = proto.Uint32(number)
	}
	if f.netlinks == nil {
		if f.netlinks, err = sockdiag.NetlinkSockets(int(ns.Fd())); err != nil {
			return nil, err
		}
	}
	s.known = f.netlinks[s.entry.GetIno()]
	s.entry.State = proto.Uint32(uint32(s.known.State))
	for _, step := range []func() error{s.addresses, s.groups, s.options, s.refuse} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return &fdinfo.FileEntry{Nlsk: s.entry}, nil
}

// addresses asks for the numbers of the socket and of its peer.
func (s *netlinkSocket) addresses() error {
	v, err := sockopt.Int(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	s.entry.Protocol = proto.Uint32(uint32(v))
	local, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	peer, err := unix.Getpeername(s.fd)
	if err != nil {
		return fmt.Errorf("getpeername: %w", err)
	}
	here, ok := local.(*unix.SockaddrNetlink)
	there, ok2 := peer.(*unix.SockaddrNetlink)
	if !ok || !ok2 {
		return errors.New("a netlink socket with addresses of another family")
	}
	s.entry.Portid, s.entry.DstPortid, s.entry.DstGroup = proto.Uint32(here.Pid), proto.Uint32(there.Pid), proto.Uint32(0)
	for group := range 32 {
		if there.Groups>>group&1 != 0 {
			*s.entry.DstGroup = uint32(group + 1)
		}
	}
	if there.Pid != 0 || there.Groups != 0 {
		s.entry.State = proto.Uint32(sockdiag.Established)
	}
	return nil
}

// groups asks which groups the socket has joined. criu's format has a word for each 32 of them; criu itself refuses more
// than one.
func (s *netlinkSocket) groups() error {
	size, err := sockopt.Get(s.fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS, nil, 0)
	if err != nil {
		return fmt.Errorf("groups of a netlink socket: %w", err)
	}
	if size == 0 {
		return nil
	}
	words, err := sockopt.Bytes(s.fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS, int(size))
	if err != nil {
		return fmt.Errorf("groups of a netlink socket: %w", err)
	}
	last := 0
	for ; len(words) >= 4; words = words[4:] {
		word := binary.NativeEndian.Uint32(words)
		s.entry.Groups = append(s.entry.Groups, word)
		if word != 0 {
			last = len(s.entry.Groups)
		}
	}
	s.entry.Groups = s.entry.Groups[:last]
	return nil
}

// options asks for the options of netlink.
func (s *netlinkSocket) options() (err error) {
	if s.entry.Opts, err = s.socketOptions(); err != nil {
		return err
	}
	kind, err := sockopt.Int(s.fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	extra := image.NetlinkExtra{Datagram: kind == unix.SOCK_DGRAM}
	for _, name := range image.NetlinkOptions {
		v, err := sockopt.Int(s.fd, unix.SOL_NETLINK, name)
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err // a kernel without it has it not
		}
		if v != 0 || name == unix.NETLINK_LISTEN_ALL_NSID && s.known.ListenAllNSID {
			extra.Options |= 1 << name
		}
	}
	image.SetNetlinkExtra(s.entry, extra)
	return nil
}

// refuse says what cannot be kept.
func (s *netlinkSocket) refuse() error {
	ready, err := poll.Now(s.fd, unix.POLLIN)
	if err != nil {
		return fmt.Errorf("poll a netlink socket: %w", err)
	}
	if ready&unix.POLLIN != 0 || s.known.Dumping {
		return s.Obstacle(fmt.Sprintf("a netlink socket of protocol %d with messages that have not been read, which only the kernel can send", s.entry.GetProtocol()),
			"let the program read them first")
	}
	if s.entry.GetProtocol() != unix.NETLINK_NETFILTER || s.entry.GetPortid() == 0 {
		return nil
	}
	for _, list := range []struct{ file, what string }{
		{"nfnetlink_queue", "gets packets from queue"}, {"nfnetlink_log", "gets the log of group"},
	} {
		number, err := boundTo(fmt.Sprintf("/proc/%d/net/netfilter/%s", s.holder().Pid, list.file), s.entry.GetPortid())
		if err != nil {
			return err
		}
		if number != "" {
			return s.Obstacle(fmt.Sprintf("a netlink socket that %s %s of the packet filter, which ends with it", list.what, number), "close it before the dump")
		}
	}
	return nil
}

// boundTo looks for a netlink socket in a list of the packet filter, and returns the number of what is bound to it; empty
// for none.
func boundTo(path string, portid uint32) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // this kernel has none
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == strconv.FormatUint(uint64(portid), 10) {
			return fields[0], nil
		}
	}
	return "", nil
}
