package collectors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"cryo/internal/image"
	"cryo/internal/netfilter"
	"cryo/internal/nsenter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sysctl"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Write stores the namespace. lock holds the network; the connections that are tracked are read under it.
func (n *NetNS) Write(set image.Creator, lock func() error) error {
	if n.file == nil {
		if err := n.writeTuns(set); err != nil {
			return err
		}
		return lock()
	}
	return nsenter.Net(n.file, func() error {
		for i, f := range netfilter.Families {
			if rules := n.rules[i]; rules != nil {
				if err := n.raw(set, f.Pattern, rules); err != nil {
					return err
				}
			}
		}
		if err := lock(); err != nil {
			return err
		}
		for _, step := range []func(image.Creator) error{n.writeDevices, n.writeRoutes, n.writeSettings, n.writeTracked} {
			if err := step(set); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
		}
		return nil
	})
}

// raw writes an image that has neither entries nor a magic number.
func (n *NetNS) raw(set image.Creator, pattern string, contents []byte) error {
	w, err := set.Create(fmt.Sprintf(pattern, n.number))
	if err != nil {
		return err
	}
	_, err = w.Write(contents)
	return errors.Join(err, w.Close())
}

// writeTuns stores the devices of the tool's own namespace that end with the tree, with their addresses and routes. criu
// dumps no tree that has any, and reads no images of a namespace that is not dumped.
func (n *NetNS) writeTuns(set image.Creator) error {
	if len(n.tuns) == 0 {
		return nil
	}
	if err := n.writeDevices(set); err != nil {
		return err
	}
	return n.writeRoutes(set)
}

// stored says whether a device is part of the dump. Others that check lets through need not be stored.
func (n *NetNS) stored(l netlink.Link) bool {
	if n.file == nil {
		return n.tuns[l.Attrs().Name] != nil
	}
	return isLoopback(l) || l.Type() == tunType
}

// writeDevices stores the devices.
func (n *NetNS) writeDevices(set image.Creator) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	var entries []*netdev.NetDeviceEntry
	for _, l := range links {
		if !n.stored(l) {
			continue
		}
		a := l.Attrs()
		e := &netdev.NetDeviceEntry{
			Type: netdev.NdType_LOOPBACK.Enum(), Ifindex: proto.Uint32(uint32(a.Index)), Mtu: proto.Uint32(uint32(a.MTU)),
			Flags: proto.Uint32(a.RawFlags), Name: proto.String(a.Name), PeerIfindex: proto.Uint32(uint32(a.Index)), PeerNsid: proto.Uint32(n.number),
		}
		if l.Type() == tunType {
			if err := n.tunDevice(e, l); err != nil {
				return err
			}
		}
		n.indices = append(n.indices, uint32(a.Index))
		if e.Conf4, err = settings("ipv4", a.Name, image.DeviceSettings4); err == nil {
			e.Conf6, err = settings("ipv6", a.Name, image.DeviceSettings6)
		}
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	return image.Write(set, image.Netdev, uint64(n.number), entries...)
}

// settings reads /proc/sys/net/FAMILY/conf/DEVICE. One that this kernel lacks has no value.
func settings(family, device string, names []string) ([]*sysctl.SysctlEntry, error) {
	var list []*sysctl.SysctlEntry
	for _, name := range names {
		e := &sysctl.SysctlEntry{Type: sysctl.SysctlType_CTL_32.Enum()}
		if name == image.StableSecret {
			e.Type = sysctl.SysctlType_CTL_STR.Enum()
		}
		if err := readSetting(e, family+"/conf/"+device+"/"+name); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// readSetting reads a file below /proc/sys/net.
func readSetting(e *sysctl.SysctlEntry, name string) error {
	text, err := os.ReadFile("/proc/sys/net/" + name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO) { // the latter is a secret that was not set
		return nil
	}
	if err != nil {
		return err
	}
	value := strings.TrimSuffix(string(text), "\n")
	if e.GetType() == sysctl.SysctlType_CTL_STR {
		e.Sarg = &value
		return nil
	}
	v, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e.Iarg = proto.Int32(int32(v))
	return nil
}

// writeSettings stores what is not of a single device.
func (n *NetNS) writeSettings(set image.Creator) (err error) {
	e := &netdev.NetnsEntry{}
	for _, s := range []struct {
		to             *[]*sysctl.SysctlEntry
		family, device string
		names          []string
	}{
		{&e.DefConf4, "ipv4", "default", image.DeviceSettings4}, {&e.AllConf4, "ipv4", "all", image.DeviceSettings4},
		{&e.DefConf6, "ipv6", "default", image.DeviceSettings6}, {&e.AllConf6, "ipv6", "all", image.DeviceSettings6},
	} {
		if *s.to, err = settings(s.family, s.device, s.names); err != nil {
			return err
		}
	}
	queue := &sysctl.SysctlEntry{Type: sysctl.SysctlType_CTL_32.Enum()}
	if err := readSetting(queue, image.MaxDgramQlen); err != nil {
		return err
	}
	groups := &sysctl.SysctlEntry{Type: sysctl.SysctlType_CTL_STR.Enum()}
	if err := readSetting(groups, image.PingGroupRange); err != nil {
		return err
	}
	const nobody = "1\t0"
	if groups.GetSarg() == nobody { // as in every new namespace
		groups.Sarg = nil
	}
	e.UnixConf, e.Ipv4Sysctl = []*sysctl.SysctlEntry{queue}, []*sysctl.SysctlEntry{groups}
	return image.Write(set, image.Netns, uint64(n.number), e)
}

// writeRoutes stores addresses, routes and rules as the kernel tells them, in the form that the command ip has for it.
func (n *NetNS) writeRoutes(set image.Creator) error {
	for _, d := range []struct {
		image.RouteDump
		family int
		skip   func(body []byte) bool
	}{
		{image.Addresses, unix.AF_UNSPEC, never}, {image.Routes, unix.AF_INET, local}, {image.Routes6, unix.AF_INET6, local}, {image.Rules, unix.AF_INET, never},
	} {
		b := binary.NativeEndian.AppendUint32(nil, d.Magic)
		req := nl.NewNetlinkRequest(d.List, unix.NLM_F_DUMP)
		req.AddData(nl.NewRtMsg())
		req.Data[0].(*nl.RtMsg).Family = uint8(d.family)
		msgs, err := req.Execute(unix.NETLINK_ROUTE, uint16(d.Answer))
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("%s: %w", fmt.Sprintf(d.Pattern, n.number), err)
		}
		for _, m := range msgs {
			if len(m) > 0 && (d.family == unix.AF_UNSPEC || int(m[0]) == d.family) && !d.skip(m) && n.concerns(d.RouteDump, m) {
				b = append(b, netfilter.Message(uint16(d.Answer), m)...)
			}
		}
		if err := n.raw(set, d.Pattern, b); err != nil {
			return err
		}
	}
	return nil
}

func never([]byte) bool { return false }

// local says whether a route is one of those that come and go with addresses, or a cached one: struct rtmsg.
func local(body []byte) bool {
	const tableAt, flagsAt = 4, 8
	return len(body) < unix.SizeofRtMsg || body[tableAt] == unix.RT_TABLE_LOCAL || binary.NativeEndian.Uint32(body[flagsAt:])&unix.RTM_F_CLONED != 0
}

// writeTracked stores what connection tracking remembers.
func (n *NetNS) writeTracked(set image.Creator) error {
	for _, t := range netfilter.Trackings {
		var b bytes.Buffer
		err := t.List(&b)
		if err == nil && b.Len() > 0 {
			err = n.raw(set, t.Pattern, b.Bytes())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// concerns says whether an address, route or rule is part of the dump: in the tool's own namespace, what is of a device that
// is stored.
func (n *NetNS) concerns(d image.RouteDump, body []byte) bool {
	const deviceAt = 4 // in struct ifaddrmsg
	switch {
	case n.file != nil:
		return true
	case d.Answer == unix.RTM_NEWADDR && len(body) >= unix.SizeofIfAddrmsg:
		return slices.Contains(n.indices, binary.NativeEndian.Uint32(body[deviceAt:]))
	case d.Answer == unix.RTM_NEWROUTE && len(body) >= unix.SizeofRtMsg:
		attrs, err := nl.ParseRouteAttr(body[unix.SizeofRtMsg:])
		return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
			return a.Attr.Type == unix.RTA_OIF && len(a.Value) >= 4 && slices.Contains(n.indices, binary.NativeEndian.Uint32(a.Value))
		})
	}
	return false
}
