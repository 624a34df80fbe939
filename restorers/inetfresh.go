package restorers

import (
	sk_opts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
)

// freshInet is what a socket has that was just made: what need not be set.
type freshInet struct{ sndbuf, rcvbuf, ttl, keepcnt, keepidle, keepintvl uint32 }

type inetSort struct{ family, kind, proto uint32 }

// fresh asks a socket of the tool, one of each sort, made in the same network namespace. Of a sort that cannot be made
// everything is set.
func (all *inetSockets) fresh(s *inetSocket) freshInet {
	sort := inetSort{s.GetFamily(), s.GetType(), s.GetProto()}
	f, known := all.sorts[sort]
	if known {
		return f
	}
	if all.sorts == nil {
		all.sorts = map[inetSort]freshInet{}
	}
	fd, err := unix.Socket(int(sort.family), int(sort.kind)|unix.SOCK_CLOEXEC, int(sort.proto))
	if err == nil {
		for _, o := range []struct {
			level, name int
			to          *uint32
		}{
			{unix.SOL_SOCKET, unix.SO_SNDBUF, &f.sndbuf}, {unix.SOL_SOCKET, unix.SO_RCVBUF, &f.rcvbuf}, {unix.SOL_IP, unix.IP_TTL, &f.ttl},
			{unix.SOL_TCP, unix.TCP_KEEPCNT, &f.keepcnt}, {unix.SOL_TCP, unix.TCP_KEEPIDLE, &f.keepidle}, {unix.SOL_TCP, unix.TCP_KEEPINTVL, &f.keepintvl},
		} {
			if v, err := unix.GetsockoptInt(fd, o.level, o.name); err == nil {
				*o.to = uint32(v)
			}
		}
		unix.Close(fd)
	}
	all.sorts[sort] = f
	return f
}

// hasBuffers says whether a fresh socket has the buffers of the image.
func (f freshInet) hasBuffers(o *sk_opts.SkOptsEntry) bool {
	return o.GetSoSndbuf() == f.sndbuf && o.GetSoRcvbuf() == f.rcvbuf && o.GetSoBufLock() == 0
}
