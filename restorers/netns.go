package restorers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"cryo/internal/image"
	"cryo/internal/netfilter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/sysctl"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NetNS is the network namespace of a set, where it is not the one the dump's tool was in: one to be made.
//
// The tool makes it and fills it before the root exists, which is born in there: settings, loopback, TUN and TAP devices,
// addresses, routes, rules, packet filters, tracked connections. Other devices are not built yet. Of the namespace the tool
// was in a set may have TUN and TAP devices, which end with those who have them open.
type NetNS struct {
	New bool // it is one to be made

	src     image.Source
	number  uint64
	all     *netdev.NetnsEntry // nil in sets of old tools
	devices []*netdev.NetDeviceEntry
}

// inNetNS refuses a socket of another network namespace than that of the tree's root, by its number in the images.
func (s *Set) inNetNS(number uint32) error {
	root := s.Tasks[0].IDs.GetNetNsId()
	if root == 0 {
		root = s.Inventory.GetRootIds().GetNetNsId()
	}
	if number != 0 && root != 0 && number != root {
		return fmt.Errorf("a socket of network namespace %d, which is not that of the tree: that is not built yet", number)
	}
	return nil
}

// PlanNetNS reads the namespace and refuses what cannot be made; nil if there is none of the set's own.
func PlanNetNS(s *Set) (*NetNS, error) {
	id, own := s.Tasks[0].IDs.GetNetNsId(), s.Inventory.GetRootIds()
	n := &NetNS{New: id != 0 && own != nil && id != own.GetNetNsId(), src: s.Source, number: uint64(id)}
	all, err := image.ReadOptional(s.Source, image.Netns, n.number)
	if err != nil {
		return nil, err
	}
	if len(all) > 0 {
		n.all = all[0]
	}
	if n.all.GetExtKey() != "" {
		return nil, fmt.Errorf("the network namespace of the tree stayed outside of the dump (%s): restore into one by --join-ns net:FILE", n.all.GetExtKey())
	}
	if n.devices, err = image.ReadOptional(s.Source, image.Netdev, n.number); err != nil {
		return nil, err
	}
	for i, d := range n.devices {
		if !deviceNamed(d.GetName()) {
			return nil, image.Errorf(image.Netdev.File(n.number), i, "%q is no name of a device", d.GetName())
		}
		if t := d.GetType(); t != netdev.NdType_TUN && (t != netdev.NdType_LOOPBACK || !n.New) {
			return nil, fmt.Errorf("network device %s (%s), which cannot be restored yet", d.GetName(), d.GetType())
		}
	}
	if len(n.devices) == 0 && !n.New {
		return nil, nil
	}
	return n, nil
}

// Fill makes the namespace of the calling thread, which is new, the one of the set; or adds the devices of the set to the
// tool's own. weak leaves out settings that this kernel lacks.
func (n *NetNS) Fill(weak bool, files *FilePlan) error {
	w := &settingWriter{weak: weak, files: files}
	for _, step := range []func(*settingWriter) error{n.settings, n.links, n.routes, n.filters} {
		if err := step(w); err != nil {
			return err
		}
	}
	return nil
}

// settings sets what is not of a single device; what of devices is to be in force from their beginning comes with it.
func (n *NetNS) settings(w *settingWriter) error {
	for _, s := range []struct {
		entries        []*sysctl.SysctlEntry
		family, device string
		names          []string
	}{
		{n.all.GetAllConf4(), "ipv4", "all", image.DeviceSettings4}, {n.all.GetDefConf4(), "ipv4", "default", image.DeviceSettings4},
		{n.all.GetAllConf6(), "ipv6", "all", image.DeviceSettings6}, {n.all.GetDefConf6(), "ipv6", "default", image.DeviceSettings6},
	} {
		if err := w.device(s.entries, s.family, s.device, s.names); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		entries []*sysctl.SysctlEntry
		name    string
	}{{n.all.GetUnixConf(), image.MaxDgramQlen}, {n.all.GetIpv4Sysctl(), image.PingGroupRange}} {
		for _, e := range s.entries[:min(len(s.entries), 1)] {
			if err := w.write(e, s.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// links sets up the devices.
func (n *NetNS) links(w *settingWriter) error {
	for _, d := range n.devices {
		if d.GetType() == netdev.NdType_TUN {
			made, err := w.files.makeTun(d)
			if err != nil {
				return err
			}
			if !made {
				continue // it is as it was left
			}
		}
		l, err := netlink.LinkByName(d.GetName())
		if err != nil {
			return fmt.Errorf("device %s: %w", d.GetName(), err)
		}
		if d.GetType() == netdev.NdType_TUN {
			if err := setAddress(l, d); err != nil {
				return err
			}
		}
		if l.Attrs().MTU != int(d.GetMtu()) {
			if err := netlink.LinkSetMTU(l, int(d.GetMtu())); err != nil {
				return fmt.Errorf("MTU of device %s: %w", d.GetName(), err)
			}
		}
		if net.Flags(d.GetFlags())&unix.IFF_UP != 0 {
			if err := netlink.LinkSetUp(l); err != nil {
				return fmt.Errorf("device %s: %w", d.GetName(), err)
			}
		}
		if err := w.device(d.Conf4, "ipv4", d.GetName(), image.DeviceSettings4); err != nil {
			return err
		}
		if err := w.device(d.Conf6, "ipv6", d.GetName(), image.DeviceSettings6); err != nil {
			return err
		}
	}
	return nil
}

// settingWriter writes files below /proc/sys/net.
type settingWriter struct {
	weak  bool
	files *FilePlan
}

// device writes the settings of a device. Redirects come last: what is usual follows whether packets are forwarded.
func (w *settingWriter) device(entries []*sysctl.SysctlEntry, family, device string, names []string) error {
	for _, last := range []bool{false, true} {
		for i, e := range entries[:min(len(entries), len(names))] {
			if (names[i] == image.AcceptRedirects) != last {
				continue
			}
			if err := w.write(e, family+"/conf/"+device+"/"+names[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes a setting that is another than the one there is.
func (w *settingWriter) write(e *sysctl.SysctlEntry, name string) error {
	value := ""
	switch {
	case e.GetType() == sysctl.SysctlType_CTL_32 && e.Iarg != nil:
		value = strconv.Itoa(int(e.GetIarg()))
	case e.GetType() == sysctl.SysctlType_CTL_STR && e.Sarg != nil:
		value = strings.TrimSpace(e.GetSarg())
	default:
		return nil // the kernel of the dump lacked it
	}
	path := "/proc/sys/net/" + name
	now, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && w.weak || err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("setting of the network: %w (--weak-sysctls skips what this kernel lacks)", err)
	}
	return nil
}

// routes adds addresses, routes and rules. What the kernel has made with the devices is there already.
func (n *NetNS) routes(*settingWriter) error {
	if err := n.flushRules(); err != nil {
		return err
	}
	for _, d := range []image.RouteDump{image.Addresses, image.Routes, image.Routes6, image.Rules} {
		msgs, err := n.messages(d)
		if err != nil {
			return err
		}
		// A route by a gateway needs the one to the gateway.
		for _, far := range []bool{false, true} {
			for _, body := range msgs {
				if far != (d.Answer == unix.RTM_NEWROUTE && throughGateway(body)) {
					continue
				}
				req := nl.NewNetlinkRequest(d.Answer, unix.NLM_F_CREATE|unix.NLM_F_ACK)
				req.AddRawData(body)
				if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EEXIST) {
					return fmt.Errorf("%s: %w", fmt.Sprintf(d.Pattern, n.number), err)
				}
			}
		}
	}
	return nil
}

// messages reads an image of rtnetlink; one that is not there is empty.
func (n *NetNS) messages(d image.RouteDump) (bodies [][]byte, err error) {
	name := fmt.Sprintf(d.Pattern, n.number)
	f, err := n.src.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err == io.EOF {
		return nil, nil
	} else if err != nil || binary.NativeEndian.Uint32(magic[:]) != d.Magic {
		return nil, image.Errorf(name, -1, "magic %x where %x is to be: %w", magic, d.Magic, err)
	}
	err = netfilter.EachMessage(f, unix.NLMSG_ALIGNTO, func(kind uint16, body []byte) error {
		if int(kind) != d.Answer {
			return fmt.Errorf("type %d", kind)
		}
		bodies = append(bodies, body)
		return nil
	})
	if err != nil {
		return nil, image.Errorf(name, -1, "%w", err)
	}
	return bodies, nil
}

// flushRules takes away the rules every namespace begins with, if the image has rules: they are among them.
func (n *NetNS) flushRules() error {
	msgs, err := n.messages(image.Rules)
	if err != nil || len(msgs) == 0 {
		return err
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("routing rules: %w", err)
	}
	for _, r := range rules {
		if err := netlink.RuleDel(&r); err != nil {
			return fmt.Errorf("routing rule %d: %w", r.Priority, err)
		}
	}
	return nil
}

// throughGateway says whether a route, struct rtmsg and attributes, leads through a gateway.
func throughGateway(body []byte) bool {
	if len(body) < unix.SizeofRtMsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(body[unix.SizeofRtMsg:])
	for _, a := range attrs {
		if t := a.Attr.Type; err == nil && (t == unix.RTA_GATEWAY || t == unix.RTA_VIA || t == unix.RTA_MULTIPATH) {
			return true
		}
	}
	return false
}

// filters sets packet filters and then what is tracked, which some of them ask for.
func (n *NetNS) filters(*settingWriter) error {
	for _, f := range netfilter.Families {
		if err := n.each(f.Pattern, f.Restore); err != nil {
			return err
		}
	}
	for _, t := range netfilter.Trackings {
		if err := n.each(t.Pattern, t.Restore); err != nil {
			return err
		}
	}
	return nil
}

// each hands an image over that is there and not empty.
func (n *NetNS) each(pattern string, do func(io.Reader) error) error {
	name := fmt.Sprintf(pattern, n.number)
	f, err := n.src.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var first [1]byte
	if _, err := io.ReadFull(f, first[:]); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	if err := do(io.MultiReader(strings.NewReader(string(first[:])), f)); err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	return nil
}
