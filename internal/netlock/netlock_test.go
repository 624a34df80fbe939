package netlock

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestLock locks one of two connections: data passes on the other alone, and on both when it is unlocked.
func TestLock(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes packet filters")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip(err)
			}
			defer listener.Close()
			locked, lockedPeer := connect(t, listener)
			open, openPeer := connect(t, listener)
			const table = "CRIU-netlock-test"
			conn := Conn{addrOf(locked.LocalAddr()), addrOf(locked.RemoteAddr())}
			if err := Lock(Where{Table: table}, []Conn{conn}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { Unlock(Where{Table: table}) })
			if there, err := Locked(Where{Table: table}); err != nil || !there {
				t.Errorf("Locked = %v, %v", there, err)
			}
			if err := Lock(Where{Table: table}, nil); err == nil {
				t.Error("the lock was made twice")
			}
			for _, c := range []net.Conn{locked, open} {
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			if !receives(openPeer, 10*time.Second) {
				t.Error("nothing passes a connection that is not locked")
			}
			if receives(lockedPeer, 300*time.Millisecond) {
				t.Error("data passes a locked connection")
			}
			if err := Unlock(Where{Table: table}); err != nil {
				t.Fatal(err)
			}
			if err := Unlock(Where{Table: table}); err != nil {
				t.Errorf("unlock once more: %v", err)
			}
			if !receives(lockedPeer, 10*time.Second) {
				t.Error("nothing passes when the lock has gone")
			}
		})
	}
}

// TestKeepOut holds a new connection back, while one that is there goes on, and lets it in.
func TestKeepOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes packet filters")
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(address, func(t *testing.T) {
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Skip(err)
			}
			defer listener.Close()
			early, peer := connect(t, listener)
			const table = "CRIU-netlock-test-doors"
			if err := KeepOut(Where{Table: table}, []netip.AddrPort{addrOf(listener.Addr())}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { Unlock(Where{Table: table}) })
			if c, err := net.DialTimeout("tcp", listener.Addr().String(), 300*time.Millisecond); err == nil {
				c.Close()
				t.Error("a new connection came in")
			}
			early.Write([]byte("x"))
			if !receives(peer, 10*time.Second) {
				t.Error("nothing passes a connection that was there")
			}
			if err := Unlock(Where{Table: table}); err != nil {
				t.Fatal(err)
			}
			connect(t, listener)
		})
	}
}

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func connect(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func receives(c net.Conn, within time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(within))
	n, err := c.Read(make([]byte, 1))
	return err == nil && n == 1
}
