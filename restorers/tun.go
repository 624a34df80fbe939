package restorers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/tuntap"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tun restores descriptors of /dev/net/tun.
//
// The tool opens and attaches them when it makes the network devices, which is before there are tasks, and hands them over
// as they are. So a device that lasts only as long as it is open ends with the tool if the restore fails.
type Tun struct{}

// tunFile is one descriptor.
type tunFile struct {
	*tun.TunfileEntry
	path   *regfile.RegFileEntry
	file   *os.File // the tool's, until the task has it
	device *tun.TunLinkEntry
}

// Plan checks the entry and notes the descriptor.
func (Tun) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	t := &tunFile{TunfileEntry: e.GetTunf(), path: e.GetReg()}
	if t.TunfileEntry == nil || t.path == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no tunf, or no path", e.GetId())
	}
	if t.Netdev != nil && !deviceNamed(t.GetNetdev()) {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: netdev %.20q is no name of a device", e.GetId(), t.GetNetdev())
	}
	if err := p.Set.inNetNS(t.GetNsId()); err != nil {
		return nil, err
	}
	if _, err := p.Paths.Get(e.GetId()); err != nil {
		return nil, err
	}
	p.plan.tuns = append(p.plan.tuns, t)
	p.plan.after(Open, t)
	return t, nil
}

// deviceNamed says whether a network device may have that name.
func deviceNamed(name string) bool {
	for _, c := range []byte(name) {
		if c == '/' || c == ':' || c <= ' ' {
			return false
		}
	}
	return name != "" && name != "." && name != ".." && len(name) < unix.IFNAMSIZ
}

func (t *tunFile) Needs() []uint32 { return nil }

func (t *tunFile) Emit(lv Level, _ *remote.Builder, s *Slots) error {
	if lv == Open {
		s.FromTool(int(t.file.Fd()), t.GetId())
	}
	return nil
}

// fill lets go of the descriptor when the task has it.
func (t *tunFile) fill(context.Context, func(*Table, int) (int, error)) (err error) {
	if t.device.GetFlags()&unix.IFF_PERSIST != 0 {
		err = persist(t.file)
	}
	return errors.Join(err, t.file.Close())
}

func persist(f *os.File) error {
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("let a TUN or TAP device last: %w", err)
	}
	return nil
}

// open opens the descriptor. What the path leads to is looked at before it is opened: that may have effects.
func (t *tunFile) open() error {
	handle, err := os.OpenFile(t.path.GetName(), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer handle.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(handle.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != tuntap.Device {
		return fmt.Errorf("%s is not the device of TUN and TAP", t.path.GetName())
	}
	const kept = unix.O_ACCMODE | unix.O_NONBLOCK
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(handle.Fd())), int(t.path.GetFlags()&kept)|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: t.path.GetName(), Err: err}
	}
	t.file = os.NewFile(uintptr(fd), t.path.GetName())
	return nil
}

// tunFlags are those a device is made with.
const tunFlags = unix.IFF_TUN | unix.IFF_TAP | unix.IFF_NAPI | unix.IFF_NAPI_FRAGS | unix.IFF_MULTI_QUEUE | unix.IFF_NO_PI | unix.IFF_ONE_QUEUE | unix.IFF_VNET_HDR

// OpenTuns opens the descriptors that have no device.
func (p *FilePlan) OpenTuns() error {
	for _, t := range p.tuns {
		if t.file != nil {
			continue
		}
		if t.Netdev != nil {
			return fmt.Errorf("TUN or TAP device %s: there is nothing about it in the set", t.GetNetdev())
		}
		if err := t.open(); err != nil {
			return err
		}
	}
	return nil
}

// makeTun makes a device, or finds one that has lasted, and attaches all descriptors to it that are to be. made says
// whether it is new.
func (p *FilePlan) makeTun(d *netdev.NetDeviceEntry) (made bool, err error) {
	flags := uint16(d.GetTun().GetFlags() & tunFlags)
	_, err = netlink.LinkByName(d.GetName())
	made = errors.As(err, &netlink.LinkNotFoundError{})
	if err != nil && !made {
		return false, fmt.Errorf("device %s: %w", d.GetName(), err)
	}
	if !made && d.GetTun().GetFlags()&unix.IFF_PERSIST == 0 {
		return false, fmt.Errorf("device %s, which the set has, is there already", d.GetName())
	}
	index := int(d.GetIfindex())
	if !made {
		index = 0
	}
	var files []*tunFile
	for _, t := range p.tuns {
		if t.Netdev != nil && t.GetNetdev() == d.GetName() {
			files = append(files, t)
		}
	}
	for i, t := range files {
		if err := t.open(); err != nil {
			return made, err
		}
		if err := tuntap.Attach(int(t.file.Fd()), index, d.GetName(), flags); err != nil {
			return made, err
		}
		if index, t.device = 0, d.GetTun(); i == 0 && made {
			err = setTun(t.file, d.GetTun())
		}
		if err == nil && t.GetDetached() {
			err = tuntap.Detach(int(t.file.Fd()))
		}
		if err != nil {
			return made, err
		}
	}
	if len(files) > 0 || !made {
		return made, nil
	}
	f, err := tuntap.Open(tuntap.Path, index, d.GetName(), flags)
	if err != nil {
		return made, err
	}
	defer f.Close()
	return made, errors.Join(setTun(f, d.GetTun()), persist(f))
}

// setTun sets what a device has through a descriptor.
func setTun(f *os.File, e *tun.TunLinkEntry) error {
	fd := int(f.Fd())
	const nobody = -1
	for request, id := range map[uint]int32{unix.TUNSETOWNER: e.GetOwner(), unix.TUNSETGROUP: e.GetGroup()} {
		if id != nobody {
			if err := unix.IoctlSetInt(fd, request, int(id)); err != nil {
				return fmt.Errorf("owner of a TUN or TAP device: %w", err)
			}
		}
	}
	for request, v := range map[uint]uint32{unix.TUNSETSNDBUF: e.GetSndbuf(), unix.TUNSETVNETHDRSZ: e.GetVnethdr()} {
		if err := unix.IoctlSetPointerInt(fd, request, int(v)); err != nil {
			return fmt.Errorf("TUN or TAP device: %w", err)
		}
	}
	return nil
}

// setAddress gives a TAP device its hardware address.
func setAddress(l netlink.Link, d *netdev.NetDeviceEntry) error {
	const macLen = 6
	if addr := d.GetAddress(); len(addr) >= macLen {
		if err := netlink.LinkSetHardwareAddr(l, net.HardwareAddr(addr[:macLen])); err != nil {
			return fmt.Errorf("hardware address of device %s: %w", d.GetName(), err)
		}
	}
	return nil
}
