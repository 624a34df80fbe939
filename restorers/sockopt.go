package restorers

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"cryo/internal/remote"

	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
)

// maxFilter is how many instructions a filter may have (BPF_MAXINSNS).
const maxFilter = 4096

// checkSocketOptions refuses options that no socket can have.
func checkSocketOptions(o *sk_opts.SkOptsEntry) error {
	switch {
	case o == nil:
		return fmt.Errorf("no socket options")
	case o.GetSoSndbuf() > math.MaxInt32 || o.GetSoRcvbuf() > math.MaxInt32:
		return fmt.Errorf("so_sndbuf %d or so_rcvbuf %d is no size of a buffer", o.GetSoSndbuf(), o.GetSoRcvbuf())
	case o.GetSoSndTmoSec() > maxSeconds || o.GetSoRcvTmoSec() > maxSeconds || o.GetSoSndTmoUsec() >= 1e6 || o.GetSoRcvTmoUsec() >= 1e6:
		return fmt.Errorf("so_snd_tmo or so_rcv_tmo is no time")
	case o.GetSoBufLock() > unix.SOCK_BUF_LOCK_MASK:
		return fmt.Errorf("so_buf_lock %#x has unknown bits", o.GetSoBufLock())
	case len(o.GetSoFilter()) > maxFilter:
		return fmt.Errorf("a filter of %d instructions", len(o.GetSoFilter()))
	case len(o.GetSoBoundDev()) >= unix.IFNAMSIZ || strings.ContainsAny(o.GetSoBoundDev(), "\x00/"):
		return fmt.Errorf("so_bound_dev %.20q is no name of a device", o.GetSoBoundDev())
	}
	return nil
}

// emitSocketOptions sets what every socket has, but for reuseaddr and reuseport: whether those can be as they are in
// the end depends on when the socket is bound.
func emitSocketOptions(b *remote.Builder, fd int, o *sk_opts.SkOptsEntry) {
	emitBufferSizes(b, fd, o)
	emitPlainOptions(b, fd, o)
}

// emitPlainOptions sets all but the sizes of buffers. What a fresh socket has is not set.
func emitPlainOptions(b *remote.Builder, fd int, o *sk_opts.SkOptsEntry) {
	const usualLowWater = 1
	if o.SoPriority != nil {
		setOption(b, fd, unix.SO_PRIORITY, o.GetSoPriority(), 0)
	}
	if o.SoRcvlowat != nil {
		setOption(b, fd, unix.SO_RCVLOWAT, o.GetSoRcvlowat(), usualLowWater)
	}
	setOption(b, fd, unix.SO_MARK, o.GetSoMark(), 0)
	for _, f := range []struct {
		option int
		on     bool
	}{
		{unix.SO_PASSCRED, o.GetSoPasscred()}, {unix.SO_PASSSEC, o.GetSoPasssec()}, {unix.SO_DONTROUTE, o.GetSoDontroute()},
		{unix.SO_NO_CHECK, o.GetSoNoCheck()}, {unix.SO_BROADCAST, o.GetSoBroadcast()}, {unix.SO_KEEPALIVE, o.GetSoKeepalive()},
		{unix.SO_OOBINLINE, o.GetSoOobinline() != 0},
	} {
		if f.on {
			setOption(b, fd, f.option, 1, 0)
		}
	}
	if o.SoLinger != nil {
		setStruct(b, fd, unix.SO_LINGER, b.Bytes(words32([]uint32{1, o.GetSoLinger()})), 8)
	}
	emitTimeout(b, fd, unix.SO_SNDTIMEO, o.GetSoSndTmoSec(), o.GetSoSndTmoUsec())
	emitTimeout(b, fd, unix.SO_RCVTIMEO, o.GetSoRcvTmoSec(), o.GetSoRcvTmoUsec())
	if d := o.GetSoBoundDev(); d != "" {
		setStruct(b, fd, unix.SO_BINDTODEVICE, b.String(d), len(d)+1)
	}
	emitFilter(b, fd, o.GetSoFilter())
}

// setOption sets an option whose value is a number, if it is another than the one a fresh socket has.
func setOption(b *remote.Builder, fd, option int, v, fresh uint32) {
	if v != fresh {
		setStruct(b, fd, option, b.Bytes(words32([]uint32{v})), 4)
	}
}

func setStruct(b *remote.Builder, fd, option int, value remote.Arg, size int) remote.Op {
	return b.Call(unix.SYS_SETSOCKOPT, remote.Imm(fd), remote.Imm(unix.SOL_SOCKET), remote.Imm(option), value, remote.Imm(size)).Must().Discard()
}

func emitTimeout(b *remote.Builder, fd, option int, sec, usec uint64) {
	if sec != 0 || usec != 0 {
		setStruct(b, fd, option, b.Bytes(quads(sec, usec)), 16)
	}
}

// emitFilter attaches a classic BPF filter.
func emitFilter(b *remote.Builder, fd int, filter []uint64) {
	if len(filter) == 0 {
		return
	}
	var prog []byte
	for _, w := range filter {
		prog = binary.NativeEndian.AppendUint16(prog, uint16(w>>48))
		prog = append(prog, byte(w>>40), byte(w>>32))
		prog = binary.NativeEndian.AppendUint32(prog, uint32(w))
	}
	head := make([]byte, unix.SizeofSockFprog)
	binary.NativeEndian.PutUint16(head, uint16(len(filter)))
	fprog := b.InOut(head)
	b.Store(fprog.At(8), b.Bytes(prog))
	setStruct(b, fd, unix.SO_ATTACH_FILTER, fprog, len(head))
}

// bufferMax are the largest buffers that may be had without CAP_NET_ADMIN, sending and receiving.
var bufferMax = sync.OnceValue(func() [2]uint64 {
	var most [2]uint64
	for i, name := range [2]string{"wmem_max", "rmem_max"} {
		if text, err := os.ReadFile("/proc/sys/net/core/" + name); err == nil {
			most[i], _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		}
	}
	return most
})

// emitBufferSizes sets the sizes of the buffers and which of them the program has chosen itself (SO_BUF_LOCK, Linux
// 5.14). The kernel doubles what it is given. Without CAP_NET_ADMIN a buffer becomes as large as it may.
func emitBufferSizes(b *remote.Builder, fd int, o *sk_opts.SkOptsEntry) {
	for i, s := range [2]struct {
		size         uint32
		option, over int
	}{
		{o.GetSoSndbuf() / 2, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE}, {o.GetSoRcvbuf() / 2, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE},
	} {
		v := b.Bytes(words32([]uint32{s.size}))
		setStruct(b, fd, s.option, v, 4)
		if uint64(s.size) > bufferMax()[i] {
			setStruct(b, fd, s.over, v, 4).Allow(unix.EPERM)
		}
	}
	if o.SoBufLock != nil {
		setStruct(b, fd, unix.SO_BUF_LOCK, b.Bytes(words32([]uint32{o.GetSoBufLock()})), 4).Allow(unix.ENOPROTOOPT)
	}
}
