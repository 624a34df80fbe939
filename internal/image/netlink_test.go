package image

import (
	"testing"

	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
)

func TestNetlinkExtra(t *testing.T) {
	for _, x := range []NetlinkExtra{{}, {Options: 1 << 12}, {Datagram: true}, {Options: 1<<3 | 1<<11, Datagram: true}} {
		e := &sk_netlink.NetlinkSkEntry{}
		SetNetlinkExtra(e, x)
		if unknown := len(e.ProtoReflect().GetUnknown()); (unknown == 0) != (x == NetlinkExtra{}) {
			t.Errorf("%+v: %d bytes", x, unknown)
		}
		if got := GetNetlinkExtra(e); got != x {
			t.Errorf("%+v came back as %+v", x, got)
		}
	}
}
