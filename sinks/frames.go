package sinks

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// The format of a stream (-D -): the eight bytes of streamMagic, then frames, all numbers little-endian:
//
//	u32 file     which file; they count from 0 in the order they are opened
//	u32 length   of what follows the header, at most 1 MiB
//	u32 type     1 open: the file's name; 2 data: its next bytes; 3 end: u64, its size;
//	             4 commit: u64, how many frames came before, and u64, how many bytes of data
//	u32 crc      CRC-32C of the twelve bytes before and what follows
//
// Files may be interleaved. inventory.img is the last, and commit comes after it: without that frame a stream is
// no set, whatever else is there. A set that builds on another one has the file parent.id, the first of all, with the run
// id of that; in one pipe it may follow it, after its commit, with a magic of its own.
const streamMagic = "CRYOSTR1"

const (
	frameOpen = 1 + iota
	frameData
	frameEnd
	frameCommit
)

const (
	frameHeader = 16
	maxFrame    = 1 << 20
	maxFiles    = 1 << 22
)

// castagnoli is made when a stream is: making it costs what starting the tool does.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// frame is one piece of a stream.
type frame struct {
	file, typ uint32
	payload   []byte
}

func checksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header, castagnoli()), castagnoli(), payload)
}

// appendHeader appends what comes before the payload.
func (f frame) appendHeader(b []byte) []byte {
	at := len(b)
	b = appendNumbers(b, f.file, f.typ, len(f.payload))
	return binary.LittleEndian.AppendUint32(b, checksum(b[at:], f.payload))
}

// appendNumbers appends what of a header the checksum is of.
func appendNumbers(b []byte, file, typ uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, file)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	return binary.LittleEndian.AppendUint32(b, typ)
}

// readFrame reads one frame. Its payload is in buf if that is large enough.
func readFrame(r io.Reader, buf []byte) (frame, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, cutStream(err)
	}
	length := binary.LittleEndian.Uint32(h[4:])
	if length > maxFrame {
		return frame{}, fmt.Errorf("it has %d bytes where at most %d are allowed", length, maxFrame)
	}
	if cap(buf) < int(length) {
		buf = make([]byte, length)
	}
	f := frame{binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint32(h[8:]), buf[:length]}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, cutStream(err)
	}
	if checksum(h[:12], f.payload) != binary.LittleEndian.Uint32(h[12:]) {
		return frame{}, errors.New("its checksum is wrong: the stream was damaged on the way")
	}
	return f, nil
}

var errCutStream = errors.New("it breaks off before the commit: the dump did not finish, or the connection was lost")

func cutStream(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutStream
	}
	return err
}

// frameWriter is where the frames of one set go.
type frameWriter interface {
	put(frame) error // the payload is the caller's again afterwards
	flush() error
	close() // gives up what it has beside the writers
}

// frameReader is where the frames of sets come from.
type frameReader interface {
	// begin looks for the start of a set; io.EOF where there is no more.
	begin() error
	next(buf []byte) (frame, error)
	// end checks what is there behind a commit.
	end() error
}

// onePipe writes frames to one writer.
type onePipe struct {
	w    *bufio.Writer
	pipe *outPipe // nil: it is none
}

func newOnePipe(w io.Writer) *onePipe {
	return &onePipe{bufio.NewWriterSize(w, 64<<10), pipeOf(w)}
}

func (p *onePipe) start() error {
	_, err := p.w.WriteString(streamMagic)
	return err
}

func (p *onePipe) put(f frame) error {
	var h [frameHeader]byte
	if _, err := p.w.Write(f.appendHeader(h[:0])); err != nil {
		return err
	}
	_, err := p.w.Write(f.payload)
	return err
}

func (p *onePipe) flush() error { return p.w.Flush() }

func (p *onePipe) close() {}

// pipeFrames reads frames from one reader, and no byte more.
type pipeFrames struct{ r io.Reader }

func (p pipeFrames) begin() error {
	var magic [len(streamMagic)]byte
	if _, err := io.ReadFull(p.r, magic[:]); err == io.EOF {
		return io.EOF
	} else if err != nil {
		return cutStream(err)
	}
	if string(magic[:]) != streamMagic {
		return fmt.Errorf("%q is not how an image stream starts", magic[:])
	}
	return nil
}

func (p pipeFrames) next(buf []byte) (frame, error) { return readFrame(p.r, buf) }

func (p pipeFrames) end() error { return nil }
