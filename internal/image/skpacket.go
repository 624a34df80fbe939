package image

import (
	"cryo/internal/wire"

	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// PacketOrigin is where a message in a socket's queue came from. criu's format reserves numbers for it and criu skips
// it, so it rides in sk_packet_entry as fields that its description does not name.
type PacketOrigin struct {
	// Addr is the sender's address, from sun_path on; nil when it had none.
	Addr []byte
	// Creds are the sender's; nil where the kernel does not tell them.
	Creds *PacketCreds
}

// PacketCreds are the ids of a sender, or of the other end of a connection, in the namespaces of the tree.
type PacketCreds struct{ PID, UID, GID uint32 }

const (
	originAddr  = 3
	originCreds = 128

	credsPID = 1
	credsUID = 2
	credsGID = 3
)

// SetPacketOrigin notes where a packet came from.
func SetPacketOrigin(e *sk_packet.SkPacketEntry, o PacketOrigin) {
	var b []byte
	if o.Addr != nil {
		b = protowire.AppendTag(b, originAddr, protowire.BytesType)
		b = protowire.AppendBytes(b, o.Addr)
	}
	if o.Creds != nil {
		b = appendCreds(b, originCreds, o.Creds)
	}
	wire.SetUnknown(e, b)
}

func appendCreds(b []byte, num protowire.Number, c *PacketCreds) []byte {
	var m []byte
	for i, v := range []uint32{c.PID, c.UID, c.GID} {
		m = protowire.AppendTag(m, protowire.Number(credsPID+i), protowire.VarintType)
		m = protowire.AppendVarint(m, uint64(v))
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), m)
}

// GetPacketOrigin reads what SetPacketOrigin noted; of a packet that criu stored it is empty.
func GetPacketOrigin(e *sk_packet.SkPacketEntry) PacketOrigin {
	var o PacketOrigin
	eachField(wire.Unknown(e), func(num protowire.Number, v []byte) {
		switch num {
		case originAddr:
			o.Addr = v
		case originCreds:
			o.Creds = packetCreds(v)
		}
	})
	return o
}

// eachField goes over the fields of bytes in b, as far as they make sense.
func eachField(b []byte, do func(num protowire.Number, v []byte)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return
		}
		if v, n := protowire.ConsumeBytes(b); n > 0 && typ == protowire.BytesType {
			do(num, v)
		}
		b = b[size:]
	}
}

// Fields that unix_sk_entry does not name: far behind those that criu may come to use.
const (
	unixPeerCreds = 1024
	unixPlace     = 1025
)

// SetPeerCreds notes what SO_PEERCRED says of a unix socket. criu does not keep that and skips it.
func SetPeerCreds(e *sk_unix.UnixSkEntry, c *PacketCreds) {
	wire.SetUnknown(e, appendCreds(wire.Unknown(e), unixPeerCreds, c))
}

// GetPeerCreds reads what SetPeerCreds noted; nil for a socket that criu stored.
func GetPeerCreds(e *sk_unix.UnixSkEntry) (c *PacketCreds) {
	eachField(wire.Unknown(e), func(num protowire.Number, v []byte) {
		if num == unixPeerCreds {
			c = packetCreds(v)
		}
	})
	return c
}

// SetPlace notes where the file of a bound unix socket is if it is not where the socket was bound: it was renamed, as
// servers do that put a new socket in the place of an old one. criu does not keep that and skips it.
func SetPlace(e *sk_unix.UnixSkEntry, path string) {
	b := protowire.AppendTag(wire.Unknown(e), unixPlace, protowire.BytesType)
	wire.SetUnknown(e, protowire.AppendString(b, path))
}

// GetPlace reads what SetPlace noted; "" for a socket whose file is where it was bound.
func GetPlace(e *sk_unix.UnixSkEntry) (path string) {
	eachField(wire.Unknown(e), func(num protowire.Number, v []byte) {
		if num == unixPlace {
			path = string(v)
		}
	})
	return path
}

func packetCreds(b []byte) *PacketCreds {
	c := &PacketCreds{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.VarintType {
			return nil
		}
		v, size := protowire.ConsumeVarint(b[n:])
		if size < 0 {
			return nil
		}
		switch num {
		case credsPID:
			c.PID = uint32(v)
		case credsUID:
			c.UID = uint32(v)
		case credsGID:
			c.GID = uint32(v)
		}
		b = b[n+size:]
	}
	return c
}
