// Package tuntap attaches descriptors to TUN and TAP devices and asks for what is behind them, in the network namespace of
// the calling thread.
//
// Kernel interfaces: /dev/net/tun and its ioctls (TUNSETIFINDEX and IFF_NOFILTER Linux 3.12), rtnetlink (IFLA_TUN_*, 4.20).
package tuntap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Path is where the device usually is, and Device its number.
const (
	Path   = "/dev/net/tun"
	Device = 10<<8 | 200
)

// Attached says which device a descriptor is attached to, "" for none, and its flags IFF_*.
func Attached(fd int) (name string, flags uint16, err error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
	if errors.Is(err, unix.EBADFD) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("device behind %s: %w", Path, err)
	}
	return req.Name(), req.Uint16(), nil
}

// Open opens path and attaches it to a device, which is made if there is none: with that index if it is not 0.
func Open(path string, index int, name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := Attach(fd, index, name, flags); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Attach attaches an open descriptor to a device, as Open does.
func Attach(fd, index int, name string, flags uint16) error {
	if index != 0 {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, index); err != nil {
			return fmt.Errorf("index %d of device %s: %w", index, name, err)
		}
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("device %q: %w", name, err)
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("attach to device %s: %w", name, err)
	}
	return nil
}

// Detach makes an attached queue of a device rest.
func Detach(fd int) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_DETACH_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETQUEUE, req); err != nil {
		return fmt.Errorf("detach a queue: %w", err)
	}
	return nil
}

// Owners are the user and the group that may attach to a device; -1 where nobody was named.
func Owners(name string) (user, group int32, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil || len(msgs) == 0 || len(msgs[0]) < unix.SizeofIfInfomsg {
		return 0, 0, fmt.Errorf("owner of device %s: %w", name, err)
	}
	owners := [2]int32{-1, -1}
	err = each(msgs[0][unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO, func(info []byte) error {
		return each(info, unix.IFLA_INFO_DATA, func(data []byte) error {
			for i, attr := range []uint16{nl.IFLA_TUN_OWNER, nl.IFLA_TUN_GROUP} {
				if err := each(data, attr, func(v []byte) error {
					if len(v) >= 4 {
						owners[i] = int32(binary.NativeEndian.Uint32(v))
					}
					return nil
				}); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return owners[0], owners[1], err
}

// each hands over the values of the attributes of one kind.
func each(b []byte, kind uint16, do func([]byte) error) error {
	attrs, err := nl.ParseRouteAttr(b)
	for _, a := range attrs {
		const nested = 0x8000 // NLA_F_NESTED
		if err == nil && a.Attr.Type&^nested == kind {
			err = do(a.Value)
		}
	}
	return err
}
