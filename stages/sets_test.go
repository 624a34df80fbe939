package stages

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestServerStartsLater connects to a server that listens only after the first attempt, and to one that never does.
func TestServerStartsLater(t *testing.T) {
	l, err := net.Listen("tcp", "127.12.34.56:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	if _, err := dialPatiently(address, 0); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("nobody listens: %v", err)
	}
	connected := make(chan error)
	go func() {
		conn, err := dialPatiently(address, time.Minute)
		if err == nil {
			conn.Close()
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("nobody listens yet: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := <-connected; err != nil {
		t.Error(err)
	}
}
