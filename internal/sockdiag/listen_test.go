package sockdiag

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestListeners finds a listener and the connection that waits at it.
func TestListeners(t *testing.T) {
	for _, mptcp := range []bool{false, true} {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
			config := net.ListenConfig{}
			config.SetMultipathTCP(mptcp)
			l, err := config.Listen(context.Background(), "tcp", address)
			if err != nil {
				t.Logf("no listener at %s: %v", address, err)
				continue
			}
			defer l.Close()
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			want := Listener{Local: l.Addr().(*net.TCPAddr).AddrPort(), Waiting: 1}
			raw, err := l.(*net.TCPListener).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				var st unix.Stat_t
				unix.Fstat(int(fd), &st)
				want.Inode = uint32(st.Ino)
			})
			if want.Local.Addr().IsUnspecified() {
				want.Local = netip.AddrPortFrom(netip.IPv6Unspecified(), want.Local.Port())
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				got, err := listener(want.Inode)
				if err != nil {
					t.Fatal(err)
				}
				if got == want {
					break
				}
				if time.Now().After(end) {
					t.Errorf("listening at %s (MPTCP %v): %+v, want %+v", address, mptcp, got, want)
					break
				}
			}
		}
	}
}

func listener(inode uint32) (Listener, error) {
	list, err := Listeners()
	for _, l := range list {
		if l.Inode == inode {
			return l, err
		}
	}
	return Listener{}, err
}
