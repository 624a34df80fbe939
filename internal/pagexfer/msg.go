// Package pagexfer is the message of criu's page server protocol, which carries memory pages over a socket:
// from a dump to a page server, and for lazy migration from a dump to whoever restores.
//
// All is one fixed message in the byte order of the machine, page bytes after some, and a few short answers:
//
//	OPEN2   object          the following pages are of this object; answer: 1 byte, has the object a parent
//	PARENT  object          answer: int32, has the object a page map in the parent set
//	ADD_F   object, run     a run and its flags; the bytes follow when it is present
//	GET     task, run       lazy migration: send me this run; answer: ADD_F and the bytes
//	CLOSE   -               all was sent; answer: int32 status, 0 when all is on its way to disk
//
// and one of our own, ADD_PACKED, for compressed pages (see AddPacked), which is sent only to who has said that it knows it.
//
// criu 4.2 counts pages with 64 bits and its message has 32 bytes; up to 4.1 it was 32 bits and 24 bytes. They
// do not understand each other. A server tells them apart by the first message, see ReadFirst.
package pagexfer

import (
	"encoding/binary"
	"fmt"
	"io"

	"cryo/internal/image"
)

// Commands.
const (
	Add        uint16 = 1 // a present run, from old clients
	Hole       uint16 = 2 // a run that is in the parent, from old clients
	Open       uint16 = 3 // Open2 without an answer, from old clients
	Open2      uint16 = 4
	Parent     uint16 = 5
	AddF       uint16 = 6
	Get        uint16 = 7
	Close      uint16 = 0x1023
	ForceClose uint16 = 0x1024 // Close when others hold the socket too and the server will not see it end

	// AddPacked is our own: a run that is present, and comes in compressed blocks. u32 tells how they are compressed
	// (image.Codec) and u32 how many pages a block has; each is u32, its size, and as many bytes: none for zeros, and
	// those of the pages where they did not get smaller. It may follow an Open2 that asked for it in Pages (AskPacked)
	// and was answered with a byte that has the bit TakesPacked. Other servers do not look at what is asked.
	AddPacked uint16 = 0x1101
)

// AskPacked in the field Pages of Open2 asks whether the server takes AddPacked.
const AskPacked = 0x4b434150

// Bits of the answer to Open2.
const (
	HasParent   = 1 << 0
	TakesPacked = 1 << 1
)

// MaxPacked is how many pages a run of AddPacked has at most.
const MaxPacked = 1 << 16

// Size is the length of a message in bytes.
const Size = 32

// oldSize is what it was before criu 4.2.
const oldSize = 24

// Msg is one message.
type Msg struct {
	Cmd    uint16
	Flags  uint16 // of a run: image.PEPresent, PELazy, PEParent
	Pages  uint64
	Addr   uint64
	Object uint64 // see Object; a task's pid for Get
}

// Append appends the message to b as it goes over the wire.
func (m Msg) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Flags)<<16|uint32(m.Cmd))
	b = binary.LittleEndian.AppendUint32(b, 0) // alignment
	b = binary.LittleEndian.AppendUint64(b, m.Pages)
	b = binary.LittleEndian.AppendUint64(b, m.Addr)
	return binary.LittleEndian.AppendUint64(b, m.Object)
}

// Reader reads messages of one connection. It reads no byte past a message, so that what follows can be spliced.
type Reader struct {
	R   io.Reader
	Old bool // the peer is older than criu 4.2
}

// ReadFirst reads the first message of a connection and finds out which of the two layouts the peer has. That
// message opens an object or asks for its parent, so it has no address: where the older layout has the object
// the newer has the address, 0, and an object is never 0.
func (r *Reader) ReadFirst() (Msg, error) {
	var b [Size]byte
	if _, err := io.ReadFull(r.R, b[:oldSize]); err != nil {
		return Msg{}, err
	}
	if binary.LittleEndian.Uint64(b[16:]) != 0 && binary.LittleEndian.Uint64(b[8:]) == 0 {
		r.Old = true
		return r.parse(b[:oldSize]), nil
	}
	if _, err := io.ReadFull(r.R, b[oldSize:]); err != nil {
		return Msg{}, err
	}
	return r.parse(b[:]), nil
}

// Read reads the next message; io.EOF when the peer closed the connection between two.
func (r *Reader) Read() (Msg, error) {
	var b [Size]byte
	n := Size
	if r.Old {
		n = oldSize
	}
	if _, err := io.ReadFull(r.R, b[:n]); err != nil {
		return Msg{}, err
	}
	return r.parse(b[:n]), nil
}

func (r *Reader) parse(b []byte) Msg {
	word := binary.LittleEndian.Uint32(b)
	m := Msg{Cmd: uint16(word), Flags: uint16(word >> 16)}
	if r.Old {
		m.Pages = uint64(binary.LittleEndian.Uint32(b[4:]))
		b = b[8:]
	} else {
		m.Pages = binary.LittleEndian.Uint64(b[8:])
		b = b[16:]
	}
	m.Addr = binary.LittleEndian.Uint64(b)
	m.Object = binary.LittleEndian.Uint64(b[8:])
	return m
}

// Object types in the low byte of Msg.Object.
const (
	typePid   = 1
	typeShmem = 2
)

// Object names an object whose pages are sent.
func Object(kind image.PagemapKind, id uint64) uint64 {
	if kind == image.ShmemPages {
		return id<<8 | typeShmem
	}
	return id<<8 | typePid
}

// ParseObject is the way back.
func ParseObject(object uint64) (image.PagemapKind, uint64, error) {
	switch object & 0xff {
	case typePid:
		return image.TaskPages, object >> 8, nil
	case typeShmem:
		return image.ShmemPages, object >> 8, nil
	}
	return 0, 0, fmt.Errorf("object %#x is neither a task nor shared memory", object)
}
