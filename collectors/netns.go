package collectors

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"cryo/internal/netfilter"
	"cryo/internal/nsenter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetNS is the network namespace of the tree: that of its root. Where it is not the tool's own it is part of the dump: its
// devices, addresses, routes, rules, packet filters, tracked connections and settings (netnsimage.go).
//
// Kernel interfaces: rtnetlink, /proc/sys/net, nf_tables and iptables by their commands, whose language the images are in,
// ctnetlink. Images: netns-N, netdev-N, ifaddr-N, route-N, route6-N, rule-N, iptables-N, ip6tables-N, nftables-N,
// netns-ct-N, netns-exp-N.
type NetNS struct {
	inode   uint64
	number  uint32                       // in the images
	file    *os.File                     // nil: the tool's own
	tuns    map[string]*tun.TunLinkEntry // TUN and TAP devices that the tree has open, by name
	rules   [][]byte                     // packet filters, by netfilter.Families
	indices []uint32                     // of the devices that are stored
}

// Own is the namespace as a file, nil if it is the tool's.
func (n *NetNS) Own() *os.File { return n.file }

// Close gives the file back.
func (n *NetNS) Close() { n.file.Close() }

// fd is a descriptor of the namespace, -1 for the tool's own.
func (n *NetNS) fd() int {
	if n.file == nil {
		return -1
	}
	return int(n.file.Fd())
}

// belong notes the network namespace of a task: the first one's is that of the tree, and others must be the same.
func (n *NetNS) belong(env *Env, t *Task, inode uint64, number uint32) error {
	switch {
	case n.inode != 0 && inode != n.inode:
		env.Obstacles.Add(Obstacle{Pid: t.Pid, What: "is in another network namespace than the root of the tree, which cannot be dumped yet"})
		return nil
	case n.inode != 0:
		return nil
	}
	n.inode, n.number = inode, number
	if own := env.Namespaces.own["net"]; inode == own {
		return nil
	}
	fd, err := t.Proc.Open("ns/net", unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("network namespace of task %d: %w", t.Pid, err)
	}
	n.file = os.NewFile(uintptr(fd), "network namespace")
	return nil
}

// finish notes what of a namespace of the tree's own cannot be dumped, when all descriptors are known.
func (n *NetNS) finish(env *Env) error {
	if n.file == nil {
		return nil
	}
	return nsenter.Net(n.file, func() error { return n.check(env) })
}

// check is finish in the namespace.
func (n *NetNS) check(env *Env) error {
	refuse := func(what, remedy string) {
		env.Obstacles.Add(Obstacle{Where: "network namespace of the tree", What: what, Remedy: remedy})
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("network devices: %w", err)
	}
	for _, l := range links {
		if l.Type() == tunType {
			if what := n.tunObstacle(l); what != "" {
				refuse(what, "dump its tasks as well")
			}
		} else if !isLoopback(l) && !fallbackDevice(l) {
			refuse(fmt.Sprintf("network device %s (%s), which cannot be dumped yet", l.Attrs().Name, l.Type()), "remove it before the dump")
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("routing rules: %w", err)
	}
	const usual = 2 // rules of IPv6 that every namespace has
	if len(rules) > usual {
		refuse("routing rules of IPv6, which the image format cannot hold", "remove them before the dump")
	}
	n.rules = make([][]byte, len(netfilter.Families))
	for i, f := range netfilter.Families {
		if n.rules[i], err = f.Rules(); err != nil {
			refuse("packet filters that cannot be stored: "+err.Error(), "install the command that is missing, or take the rules away")
		}
	}
	return nil
}

// tunType is what the netlink library calls TUN and TAP devices.
const tunType = "tuntap"

func isLoopback(l netlink.Link) bool { return l.Attrs().Flags&net.FlagLoopback != 0 }

// fallbackDevice says whether the kernel makes the device by itself in every namespace, when the module for its kind of
// tunnels is loaded, and it is not in use.
func fallbackDevice(l netlink.Link) bool {
	a := l.Attrs()
	names := []string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
	return a.Flags&net.FlagUp == 0 && slices.Contains(names, a.Name)
}

// netNS opens the network namespace of a socket (Linux 4.9) and says which one it is. A task may have one without being in
// there; of a namespace that is not the tree's no socket can be dumped: its obstacle calls the socket what. The number is
// that of the images, 0 where no task is in the namespace.
//
// Without CAP_NET_ADMIN in there the kernel does not tell, and the namespace is taken for the tree's.
func (p *Probe) netNS(env *Env, fd int, what string) (ns *os.File, number uint32, err error) {
	own, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		if own, err = unix.Open(fmt.Sprintf("/proc/%d/ns/net", p.holder().Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil, 0, fmt.Errorf("network namespace of a task: %w", err)
		}
	}
	ns = os.NewFile(uintptr(own), "network namespace")
	var st unix.Stat_t
	if err = unix.Fstat(own, &st); err != nil {
		err = fmt.Errorf("network namespace: %w", err)
	} else if tree := env.NetNS.inode; tree != 0 && st.Ino != tree {
		err = p.Obstacle(fmt.Sprintf("%s of network namespace %d, which is not that of the tree and cannot be dumped yet", what, st.Ino),
			"start the dump at a task that is in that namespace")
	}
	if err != nil {
		ns.Close()
		return nil, 0, err
	}
	number, _ = env.Namespaces.ByInode("net", st.Ino)
	return ns, number, nil
}

// deviceName asks a socket for the name of a device in its namespace.
func deviceName(fd int, index uint32) (string, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	req.SetUint32(index)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", fmt.Errorf("name of network device %d: %w", index, err)
	}
	return strings.TrimRight(req.Name(), "\x00"), nil
}
