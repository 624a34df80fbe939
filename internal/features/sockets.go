package features

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// What is told of sockets and network devices, and how they are made again.
var (
	SockDiag      = define("sock_diag", Extra, "3.3", "list the sockets of a network namespace", probeSockDiag)
	DiagRaw       = define("net_diag_raw", Extra, "", "dump raw sockets", probeRaw)
	SockNS        = define("sk_ns", Extra, "4.9", "know the network namespace of a socket", probeSockNS)
	UnixFile      = define("sk_unix_file", ByName, "5.4", "open the file a UNIX socket is bound to", probeUnixFile)
	PeekOff       = define("sock_peek_off", ByName, "3.4", "read queued data without taking it", probePeekOff)
	BufLock       = define("sockopt_buf_lock", Extra, "5.14", "know which buffer sizes a program set", probeBufLock)
	IPv6Freebind  = define("ipv6_freebind", Extra, "4.15", "bind IPv6 sockets to addresses that are to come", probeIPv6Freebind)
	TCPRepair     = define("tcp_repair", ByName, "3.5", "take TCP connections apart and together", probeTCPRepair)
	TCPWindow     = define("tcp_repair_window", Extra, "4.8", "keep the window of a TCP connection", probeTCPWindow)
	TCPHalfClosed = define("tcp_half_closed", Extra, "4.18", "repair connections that one side has closed", probeTCPHalfClosed)
	Tun           = define("tun", Extra, "3.12", "make TUN devices again", probeTun)
	TunNS         = define("tun_ns", ByName, "5.3", "know the network namespace of a TUN device", probeTunNS)
	NetNSID       = define("nsid", ByName, "4.0", "ids of network namespaces", probeNSID)
	LinkNSID      = define("link_nsid", ByName, "4.0", "devices whose other end is in another namespace", probeNSID)
	NewIfindex    = define("newifindex", Extra, "5.13", "move devices between namespaces with the index they had", probeNewIfindex)
	ExternalNet   = define("external_net_ns", ByName, "", "network namespaces that stay outside", func() error { return nil }).
			usedBy(options.Namespaces)
	Nftables     = define("nftables", ByName, "3.13", "nftables rules", probeNftables).usedBy(options.Namespaces)
	NftablesLock = define("network_lock_nftables", Extra, "3.13", "hold packets back by nftables", probeNftables).usedBy(options.TCP)
	IptLegacy    = define("has_ipt_legacy", ByName, "", "an iptables command of the legacy interface", probeIptLegacy)
)

// withSocket runs f with a new socket.
func withSocket(family, kind, proto int, f func(fd int) error) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return f(fd)
}

func probeSockNS() error {
	return withSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0, func(fd int) error {
		ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		if err != nil {
			return os.NewSyscallError("ioctl(SIOCGSKNS)", err)
		}
		return unix.Close(ns)
	})
}

const siocUnixFile = 0x89e0

// probeUnixFile asks for the file of a socket that has none, which a kernel that knows the request says.
func probeUnixFile() error {
	return withSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0, func(fd int) error {
		_, err := unix.IoctlRetInt(fd, siocUnixFile)
		return refusedWith("ioctl(SIOCUNIXFILE)", err, unix.ENOENT)
	})
}

func probePeekOff() error {
	return withSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0, func(fd int) error {
		off, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
		if err != nil {
			return os.NewSyscallError("getsockopt(SO_PEEK_OFF)", err)
		}
		return yes(off == -1)
	})
}

func probeBufLock() error {
	return withSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0, func(fd int) error {
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
		return os.NewSyscallError("getsockopt(SO_BUF_LOCK)", err)
	})
}

func probeIPv6Freebind() error {
	return withSocket(unix.AF_INET6, unix.SOCK_DGRAM, 0, func(fd int) error {
		return os.NewSyscallError("setsockopt(IPV6_FREEBIND)", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1))
	})
}

// inRepair runs f with a TCP socket in repair mode.
func inRepair(f func(fd int) error) error {
	try := func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1); err != nil {
			return os.NewSyscallError("setsockopt(TCP_REPAIR)", err)
		}
		return f(fd)
	}
	err := withSocket(unix.AF_INET, unix.SOCK_STREAM, 0, try)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		err = withSocket(unix.AF_INET6, unix.SOCK_STREAM, 0, try)
	}
	return err
}

func probeTCPRepair() error { return inRepair(func(int) error { return nil }) }

func probeTCPWindow() error {
	return inRepair(func(fd int) error {
		var window [20]byte // struct tcp_repair_window
		size := uint32(len(window))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TCP, unix.TCP_REPAIR_WINDOW,
			uintptr(unsafe.Pointer(&window)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return os.NewSyscallError("getsockopt(TCP_REPAIR_WINDOW)", errno)
		}
		return nil
	})
}

// probeTCPHalfClosed closes one direction of a connection over the loopback device and puts its end in repair mode.
func probeTCPHalfClosed() error {
	return withSocket(unix.AF_INET, unix.SOCK_STREAM, 0, func(server int) error {
		if err := unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		if err := unix.Listen(server, 1); err != nil {
			return os.NewSyscallError("listen", err)
		}
		addr, err := unix.Getsockname(server)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		return withSocket(unix.AF_INET, unix.SOCK_STREAM, 0, func(fd int) error {
			if err := unix.Connect(fd, addr); err != nil {
				return os.NewSyscallError("connect", err)
			}
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				return os.NewSyscallError("shutdown", err)
			}
			return os.NewSyscallError("setsockopt(TCP_REPAIR)", unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1))
		})
	})
}

// probeRaw makes raw sockets. All that there is to know of one it tells itself, so the kernel need not list them.
func probeRaw() error {
	return errors.Join(
		withSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, func(int) error { return nil }),
		withSocket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW, func(int) error { return nil }))
}

// withTun runs f with a TUN descriptor that no device is attached to.
func withTun(f func(fd int) error) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	defer unix.Close(fd)
	return f(fd)
}

func probeTun() error {
	return withTun(func(fd int) error {
		return os.NewSyscallError("ioctl(TUNSETIFINDEX)", unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, 13))
	})
}

func probeTunNS() error {
	return withTun(func(fd int) error {
		ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		if err != nil {
			return os.NewSyscallError("ioctl(SIOCGSKNS)", err)
		}
		return unix.Close(ns)
	})
}

// probeIptLegacy looks for the command; we never run it.
func probeIptLegacy() error {
	for _, name := range []string{"iptables-legacy", "iptables"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if real, err := filepath.EvalSymlinks(path); err == nil && strings.Contains(real, "legacy") {
			return nil
		}
	}
	return fmt.Errorf("no such command in PATH")
}
