package restorers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/sockopt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	"golang.org/x/sys/unix"
)

// Netlink restores netlink sockets.
//
// The task that owns a socket makes it and sets its options. It gets its number, its groups and its peer from the tool, when
// all descriptors of the tree have been made: what happens on the way is not for it to hear.
type Netlink struct{}

// netlinkSockets are all of the set.
type netlinkSockets struct{ list []*netlinkSocket }

type netlinkSocket struct {
	*sk_netlink.NetlinkSkEntry
	madeSocket
	extra image.NetlinkExtra
}

type netlinkKey struct{}

const (
	maxNetlinkProtocol = 32      // MAX_LINKS
	maxNetlinkGroups   = 1 << 16 // of one protocol: far more than any has
	netlinkConnected   = 1       // the state of a socket with a peer
)

// Plan checks the entry and notes the socket.
func (Netlink) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetNlsk() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no nlsk", e.GetId())
	}
	s := &netlinkSocket{NetlinkSkEntry: e.GetNlsk(), extra: image.GetNetlinkExtra(e.GetNlsk())}
	err := checkSocketOptions(s.Opts)
	switch {
	case err != nil:
	case s.GetProtocol() >= maxNetlinkProtocol:
		err = fmt.Errorf("protocol %d", s.GetProtocol())
	case len(s.GetGroups()) > maxNetlinkGroups/32:
		err = fmt.Errorf("%d words of groups", len(s.GetGroups()))
	case s.GetDstGroup() > 32:
		err = fmt.Errorf("dst_group %d is none that a socket can be connected to", s.GetDstGroup())
	}
	if err != nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d, netlink socket: %w", e.GetId(), err)
	}
	if err := p.Set.inNetNS(s.GetNsId()); err != nil {
		return nil, err
	}
	all, err := Shared(p, netlinkKey{}, func() (*netlinkSockets, error) {
		all := &netlinkSockets{}
		p.plan.after(Watch, all)
		return all, nil
	})
	if err != nil {
		return nil, err
	}
	all.list = append(all.list, s)
	return s, nil
}

func (s *netlinkSocket) Needs() []uint32 { return nil }

func (s *netlinkSocket) Emit(lv Level, b *remote.Builder, slots *Slots) error {
	switch lv {
	case Open:
		kind := uint32(unix.SOCK_RAW)
		if s.extra.Datagram {
			kind = unix.SOCK_DGRAM
		}
		s.emitMake(b, slots, s, unix.AF_NETLINK, kind, s.GetProtocol())
	case Attach:
		fd := slots.Number(s.GetId())
		emitSocketOptions(b, fd, s.Opts)
		setOption(b, fd, unix.SO_REUSEADDR, uint32(flag(s.Opts.GetReuseaddr())), 0)
		for _, name := range image.NetlinkOptions {
			if s.extra.Options>>name&1 != 0 {
				setNumber(b, fd, unix.SOL_NETLINK, name, 1)
			}
		}
	}
	return nil
}

// fill binds all sockets, and then connects: a peer may be among them.
func (all *netlinkSockets) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	return completeSockets(ctx, all.list, open, (*netlinkSocket).bind, (*netlinkSocket).connect)
}

func (s *netlinkSocket) title() string {
	return fmt.Sprintf("netlink socket of protocol %d", s.GetProtocol())
}

// bind gives the socket its number and lets it join its groups. Numbers are given out by the kernel and few programs look at
// theirs, so one that is taken is replaced.
func (s *netlinkSocket) bind(fd int) error {
	if s.GetPortid() != 0 {
		addr := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: s.GetPortid()}
		err := unix.Bind(fd, addr)
		if errors.Is(err, unix.EADDRINUSE) {
			addr.Pid = 0
			if err = unix.Bind(fd, addr); err == nil {
				slog.Warn(fmt.Sprintf("%s: fd %d: netlink address %d is taken, the socket gets another one", s.table.Node, s.number, s.GetPortid()))
			}
		}
		if err != nil {
			return fmt.Errorf("bind to %d: %w", s.GetPortid(), err)
		}
	}
	for i, word := range s.GetGroups() {
		for ; word != 0; word &= word - 1 {
			group := 32*i + bits.TrailingZeros32(word) + 1
			if err := sockopt.SetInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
				return fmt.Errorf("join group %d: %w", group, err)
			}
		}
	}
	return nil
}

func (s *netlinkSocket) connect(fd int) error {
	if s.GetState() != netlinkConnected {
		return nil
	}
	peer := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: s.GetDstPortid()}
	if group := s.GetDstGroup(); group != 0 {
		peer.Groups = 1 << (group - 1)
	}
	if err := unix.Connect(fd, peer); err != nil {
		return fmt.Errorf("connect to %d: %w", s.GetDstPortid(), err)
	}
	return nil
}
