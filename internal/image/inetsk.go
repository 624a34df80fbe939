package image

import (
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	"google.golang.org/protobuf/encoding/protowire"
)

// udpCork is a number in inet_sk_entry far from those that criu gives out. criu dumps no corked UDP sockets, and skips it.
const udpCork = 7001

// SetUDPCork notes that a UDP socket waits with what it sends (UDP_CORK).
func SetUDPCork(e *sk_inet.InetSkEntry) { setNumber(e, udpCork, 1) }

// UDPCork says whether SetUDPCork has noted anything.
func UDPCork(e *sk_inet.InetSkEntry) (corked bool) {
	eachNumber(e, func(num protowire.Number, v uint64) { corked = corked || num == udpCork && v != 0 })
	return corked
}
