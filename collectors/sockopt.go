package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cryo/internal/sockopt"

	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// socketOptions reads what every socket has, whatever its family: the options of level SOL_SOCKET.
func socketOptions(fd, family int) (*sk_opts.SkOptsEntry, error) {
	r := &optionReader{fd: fd}
	e := &sk_opts.SkOptsEntry{
		SoSndbuf: r.number(unix.SO_SNDBUF), SoRcvbuf: r.number(unix.SO_RCVBUF),
		SoPriority: r.number(unix.SO_PRIORITY), SoRcvlowat: r.number(unix.SO_RCVLOWAT),
		Reuseaddr: r.flag(unix.SO_REUSEADDR), SoReuseport: r.flag(unix.SO_REUSEPORT),
		SoDontroute: r.flag(unix.SO_DONTROUTE), SoNoCheck: r.flag(unix.SO_NO_CHECK),
		SoBroadcast: r.flag(unix.SO_BROADCAST), SoKeepalive: r.flag(unix.SO_KEEPALIVE), SoOobinline: r.number(unix.SO_OOBINLINE),
	}
	e.SoSndTmoSec, e.SoSndTmoUsec = r.timeout(unix.SO_SNDTIMEO)
	e.SoRcvTmoSec, e.SoRcvTmoUsec = r.timeout(unix.SO_RCVTIMEO)
	if family == unix.AF_UNIX || family == unix.AF_NETLINK {
		e.SoPasscred, e.SoPasssec = r.flag(unix.SO_PASSCRED), r.flag(unix.SO_PASSSEC)
	}
	// To set a mark takes CAP_NET_ADMIN, so nothing is said of one that was never set.
	if mark := r.value(unix.SO_MARK); mark != 0 {
		e.SoMark = proto.Uint32(uint32(mark))
	}
	r.linger(e)
	if r.err == nil {
		r.bufferLocks(e)
		e.SoBoundDev = r.device()
		e.SoFilter, r.err = socketFilter(fd)
	}
	if r.err != nil {
		return nil, fmt.Errorf("socket options: %w", r.err)
	}
	return e, nil
}

// socketOptions are those that were asked when the socket was probed.
func (p *Probe) socketOptions() (*sk_opts.SkOptsEntry, error) {
	if errors.Is(p.optionsErr, unix.EACCES) {
		return nil, p.Obstacle("a socket with a filter of extended BPF, which the kernel does not show", "")
	}
	return p.Options, p.optionsErr
}

// optionReader reads options until the first error.
type optionReader struct {
	fd  int
	err error
}

func (r *optionReader) value(option int) int {
	if r.err != nil {
		return 0
	}
	v, err := sockopt.Int(r.fd, unix.SOL_SOCKET, option)
	r.err = err
	return v
}

func (r *optionReader) number(option int) *uint32 { return proto.Uint32(uint32(r.value(option))) }

func (r *optionReader) flag(option int) *bool { return proto.Bool(r.value(option) != 0) }

func (r *optionReader) timeout(option int) (sec, usec *uint64) {
	if r.err != nil {
		return nil, nil
	}
	var tv *unix.Timeval
	if tv, r.err = unix.GetsockoptTimeval(r.fd, unix.SOL_SOCKET, option); r.err != nil {
		return nil, nil
	}
	return proto.Uint64(uint64(tv.Sec)), proto.Uint64(uint64(tv.Usec))
}

func (r *optionReader) linger(e *sk_opts.SkOptsEntry) {
	if r.err != nil {
		return
	}
	var l *unix.Linger
	if l, r.err = unix.GetsockoptLinger(r.fd, unix.SOL_SOCKET, unix.SO_LINGER); r.err == nil && l.Onoff != 0 {
		e.SoLinger = proto.Uint32(uint32(l.Linger))
	}
}

// bufferLocks tells which buffer sizes the program chose itself (Linux 5.14).
func (r *optionReader) bufferLocks(e *sk_opts.SkOptsEntry) {
	v, err := unix.GetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err == nil {
		e.SoBufLock = proto.Uint32(uint32(v))
	} else if !errors.Is(err, unix.ENOPROTOOPT) {
		r.err = fmt.Errorf("locks of buffer sizes: %w", err)
	}
}

// device is the network device the socket is bound to, nil for none.
func (r *optionReader) device() *string {
	name, err := unix.GetsockoptString(r.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		r.err = fmt.Errorf("bound device: %w", err)
	}
	if err != nil || name == "" {
		return nil
	}
	return &name
}

// socketFilter reads the classic BPF filter attached to a socket (SO_GET_FILTER, Linux 3.8), an instruction in each
// word, in the order code, jt, jf, k from the top whatever the machine's byte order. A filter of the extended kind
// cannot be read.
func socketFilter(fd int) ([]uint64, error) {
	n, err := sockopt.Get(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, nil, 0)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, n*unix.SizeofSockFilter)
	if n, err = sockopt.Get(fd, unix.SOL_SOCKET, unix.SO_GET_FILTER, buf, n); err != nil {
		return nil, err
	}
	order := binary.NativeEndian
	words := make([]uint64, n)
	for i := range words {
		b := buf[i*unix.SizeofSockFilter:]
		words[i] = uint64(order.Uint16(b))<<48 | uint64(b[2])<<40 | uint64(b[3])<<32 | uint64(order.Uint32(b[4:]))
	}
	return words, nil
}
