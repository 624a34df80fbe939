package tcprepair

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPacket looks at the bytes of a segment.
func TestPacket(t *testing.T) {
	s := Segment{From: netip.MustParseAddrPort("10.0.0.1:80"), To: netip.MustParseAddrPort("10.0.0.2:8080"), Seq: 1, Ack: 2, Window: 3, Flags: FIN | ACK}
	p := s.packet()
	if len(p) != ipv4Header+tcpHeader {
		t.Fatalf("%d bytes", len(p))
	}
	// Summed with its own checksum a segment gives nothing.
	if sum := checksum(p[12:16], p[16:20], p[ipv4Header:]); sum != 0 {
		t.Errorf("checksum is off by %#x", sum)
	}
	want, _ := hex.DecodeString("00501f9000000001000000025011" + "0003")
	if got := p[ipv4Header:][:len(want)]; !bytes.Equal(got, want) {
		t.Errorf("segment %x, want %x", got, want)
	}
}

func TestPacketIPv6(t *testing.T) {
	s := Segment{From: netip.MustParseAddrPort("[fe80::1]:80"), To: netip.MustParseAddrPort("[::1]:8080"), Flags: ACK}
	p := s.packet()
	if len(p) != ipv6Header+tcpHeader || p[0]>>4 != 6 {
		t.Fatalf("%x is no IPv6 packet", p)
	}
	if sum := checksum(p[8:24], p[24:40], p[ipv6Header:]); sum != 0 {
		t.Errorf("checksum is off by %#x", sum)
	}
}

// TestRepair reads a live connection, which goes on as if nothing had been.
func TestRepair(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: repair mode takes CAP_NET_ADMIN")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	file, err := client.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())

	if err := Enter(fd); err != nil {
		t.Fatal(err)
	}
	before, err := Seq(fd, Send)
	if err != nil {
		t.Fatal(err)
	}
	if w, ok, err := GetWindow(fd); err != nil || ok && (w.SndWnd == 0 || w.RcvWnd == 0) {
		t.Errorf("window %+v, %v", w, err)
	}
	if err := LeaveQuietly(fd, true); err != nil {
		t.Fatal(err)
	}
	if reuse, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || reuse != 1 {
		t.Errorf("SO_REUSEADDR is %d, %v", reuse, err)
	}
	const text = "hello"
	if _, err := client.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	server.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len(text))
	if _, err := server.Read(got); err != nil || string(got) != text {
		t.Errorf("%q, %v", got, err)
	}
	sockets := Sockets{Files: []*os.File{file}, Reuse: []bool{false}}
	if err := sockets.Enter(); err != nil {
		t.Fatal(err)
	}
	if after, err := Seq(fd, Send); err != nil || after != before+uint32(len(text)) {
		t.Errorf("sequence number %d after %d and %d bytes, %v", after, before, len(text), err)
	}
	if err := sockets.Leave(); err != nil {
		t.Fatal(err)
	}
}
