package collectors

import (
	"fmt"
	"log/slog"

	"cryo/internal/tuntap"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Tun collects descriptors of /dev/net/tun, with or without a device behind them. The devices themselves are part of the
// network namespace ([NetNS]); one that lasts only as long as it is open is stored even where the namespace is the tool's.
//
// The path of the file is an entry of its own with the same id, as criu has it. Packets that wait to be read are lost, as
// packets may be.
type Tun struct{}

// Match takes open files of the device.
func (Tun) Match(p *Probe) bool {
	return p.mode() == unix.S_IFCHR && p.Stat.Rdev == tuntap.Device && p.Flags&unix.O_PATH == 0
}

// Collect makes a tunfile_entry and the reg_file_entry of the path.
func (Tun) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	ns, number, err := p.netNS(f.env, fd, "a TUN or TAP descriptor") // Linux 5.3
	if err != nil {
		return nil, err
	}
	ns.Close()
	reg, err := f.regular(p, id)
	if err != nil {
		return nil, err
	}
	e := &tun.TunfileEntry{Id: proto.Uint32(id)}
	if number != 0 {
		e.NsId = proto.Uint32(number)
	}
	name, flags, err := tuntap.Attached(fd)
	switch {
	case err != nil:
		return nil, err
	case name != "":
		if flags&unix.IFF_NOFILTER == 0 {
			return nil, p.Obstacle(fmt.Sprintf("TUN or TAP device %s with a filter of packets, which cannot be dumped", name), "detach it before the dump")
		}
		e.Netdev = proto.String(name)
		if flags&unix.IFF_DETACH_QUEUE != 0 {
			e.Detached = proto.Bool(true)
		}
		if err := f.env.NetNS.attached(fd, name, flags); err != nil {
			return nil, err
		}
		warnOfPackets(p, fd)
	}
	f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id), Reg: reg})
	return &fdinfo.FileEntry{Tunf: e}, nil
}

func warnOfPackets(p *Probe, fd int) {
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ready, 0); err == nil && n > 0 && ready[0].Revents&unix.POLLIN != 0 {
		slog.Warn(fmt.Sprintf("Task %d, %s: packets that have not been read will be lost", p.holder().Pid, p.Where()))
	}
}

// attached notes a device that a task of the tree has open.
func (n *NetNS) attached(fd int, name string, flags uint16) error {
	if n.tuns[name] != nil {
		return nil
	}
	if n.tuns == nil {
		n.tuns = map[string]*tun.TunLinkEntry{}
	}
	e, err := tunLink(fd, flags)
	n.tuns[name] = e
	return err
}

// tunLink asks an attached descriptor about the device.
func tunLink(fd int, flags uint16) (*tun.TunLinkEntry, error) {
	e := &tun.TunLinkEntry{Flags: proto.Uint32(uint32(flags &^ (unix.IFF_NOFILTER | unix.IFF_ATTACH_QUEUE | unix.IFF_DETACH_QUEUE)))}
	for request, to := range map[uint]**uint32{unix.TUNGETVNETHDRSZ: &e.Vnethdr, unix.TUNGETSNDBUF: &e.Sndbuf} {
		v, err := unix.IoctlGetInt(fd, request)
		if err != nil {
			return nil, fmt.Errorf("TUN or TAP device: %w", err)
		}
		*to = proto.Uint32(uint32(int32(v)))
	}
	return e, nil
}

// tunDevice completes the entry of a device. One that nobody in the tree has open is opened for a moment: it is one that
// lasts, or it stays outside.
func (n *NetNS) tunDevice(e *netdev.NetDeviceEntry, l netlink.Link) error {
	link := n.tuns[e.GetName()]
	if link == nil {
		t := l.(*netlink.Tuntap)
		flags := uint16(t.Mode) | uint16(t.Flags) | unix.IFF_NOFILTER
		file, err := tuntap.Open(tuntap.Path, 0, e.GetName(), flags)
		if err != nil {
			return err
		}
		defer file.Close()
		if _, flags, err = tuntap.Attached(int(file.Fd())); err == nil {
			link, err = tunLink(int(file.Fd()), flags)
		}
		if err != nil {
			return err
		}
	}
	owner, group, err := tuntap.Owners(e.GetName())
	if err != nil {
		return err
	}
	link.Owner, link.Group = proto.Int32(owner), proto.Int32(group)
	e.Type, e.Tun = netdev.NdType_TUN.Enum(), link
	if addr := l.Attrs().HardwareAddr; len(addr) > 0 {
		e.Address = addr
	}
	return nil
}

// tunObstacle says why a TUN or TAP device cannot be dumped; empty if it can.
func (n *NetNS) tunObstacle(l netlink.Link) string {
	if t := l.(*netlink.Tuntap); t.NonPersist && n.tuns[t.Name] == nil {
		return fmt.Sprintf("TUN or TAP device %s, which somebody outside of the tree has open", t.Name)
	}
	return ""
}
