package image

import (
	"testing"

	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

func TestPacketOrigin(t *testing.T) {
	for _, o := range []PacketOrigin{
		{},
		{Addr: []byte("\x00abstract")},
		{Addr: []byte{}},
		{Creds: &PacketCreds{PID: 7, UID: 1000, GID: 4294967295}},
		{Addr: []byte("/tmp/x\x00"), Creds: &PacketCreds{}},
	} {
		e := &sk_packet.SkPacketEntry{IdFor: proto.Uint32(1), Length: proto.Uint32(2)}
		SetPacketOrigin(e, o)
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		back := &sk_packet.SkPacketEntry{}
		if err := proto.Unmarshal(b, back); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(o, GetPacketOrigin(back)); d != "" {
			t.Errorf("%+v: %s", o, d)
		}
		if back.GetIdFor() != 1 || back.GetLength() != 2 {
			t.Errorf("fields lost: %v", back)
		}
	}
}

func TestPeerCreds(t *testing.T) {
	e := &sk_unix.UnixSkEntry{Id: proto.Uint32(1)}
	if c := GetPeerCreds(e); c != nil {
		t.Errorf("%+v of an entry without", c)
	}
	want := &PacketCreds{PID: 70000, UID: 1, GID: 0}
	SetPeerCreds(e, want)
	SetPlace(e, "/run/server.sock")
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	back := &sk_unix.UnixSkEntry{}
	if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(b, back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, GetPeerCreds(back)); d != "" {
		t.Error(d)
	}
	if place := GetPlace(back); place != "/run/server.sock" {
		t.Errorf("place %q", place)
	}
}
