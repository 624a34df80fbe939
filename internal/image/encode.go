package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"sync"

	"cryo/internal/wire"

	"google.golang.org/protobuf/proto"
)

// Encoder writes one image. It buffers: Flush must be called, as the last thing, and must succeed.
type Encoder struct {
	file string
	typ  *Type
	w    *bufio.Writer
	n    int
	owed int64  // payload the last entry announced and nobody wrote yet
	msgs uint32 // messages of a queue, the same
	buf  []byte
}

// buffers keeps the buffers of finished images: a tree of 1,000 tasks has 7,000 of them.
var buffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 32<<10) }}

// NewEncoder starts an image of type t on w with its magic numbers. file is for errors.
func NewEncoder(w io.Writer, file string, t *Type) *Encoder {
	e := &Encoder{file: file, typ: t, w: buffers.Get().(*bufio.Writer)}
	e.w.Reset(w)
	for _, m := range t.leading() {
		e.u32(m)
	}
	return e
}

// Entry writes the next entry. Where a payload belongs to the one before, it must have been written.
func (e *Encoder) Entry(m proto.Message) error {
	if err := e.complete(); err != nil {
		return err
	}
	if err := e.message(m); err != nil {
		return err
	}
	if e.typ.Payload != nil {
		e.owed = e.typ.Payload(m)
	}
	if e.typ.Messages != nil {
		e.msgs = e.typ.Messages(m)
	}
	e.n++
	return nil
}

// Run writes a run of a page map as its next entry, or as several.
func (e *Encoder) Run(r Run) error {
	for r.Pages > longRun && r.Pages <= maxSplit {
		if err := e.Run(Run{r.Addr, longRun, r.Flags}); err != nil {
			return err
		}
		r.Addr, r.Pages = r.Addr+longRun*PageSize, r.Pages-longRun
	}
	e.buf = appendRun(e.buf[:0], r)
	return e.run()
}

const (
	// longRun is how many pages an entry has, 1 GiB: criu 4.2's lazy-pages daemon counts the bytes of one in 31 bits.
	longRun = 1 << 30 / PageSize
	// maxSplit is the size of a run, in pages, that is an entry nevertheless, 1 TiB: what a page server is told in a few bytes
	// must not become an image of any size.
	maxSplit = 1 << 40 / PageSize
)

// PackedRun is Run for one whose bytes are stored in blocks.
func (e *Encoder) PackedRun(r Run, blocks Blocks) error {
	e.buf = appendPackedRun(e.buf[:0], r, blocks)
	return e.run()
}

func (e *Encoder) run() error {
	e.n++
	e.u32(uint32(len(e.buf)))
	_, err := e.w.Write(e.buf)
	return e.wrap(err)
}

// Payload writes the raw bytes of the last entry from r: as many as the entry announced, with zeros for the
// padding where r ends before it; to the end of r where the entry has no length.
func (e *Encoder) Payload(r io.Reader) error {
	if e.owed == EndOfFile {
		e.owed = 0
		_, err := io.Copy(e.w, r)
		return e.wrap(err)
	}
	n, err := io.Copy(e.w, io.LimitReader(r, e.owed))
	if err != nil {
		return e.wrap(err)
	}
	if e.owed -= n; e.owed >= 8 {
		return e.wrap(fmt.Errorf("entry %d announces %d bytes of data more than there are", e.n-1, e.owed))
	}
	var zeros [8]byte
	_, err = e.w.Write(zeros[:e.owed])
	e.owed = 0
	return e.wrap(err)
}

// Message writes one message of a SysV message queue, the last entry, and its text.
func (e *Encoder) Message(m proto.Message, text []byte) error {
	if e.msgs == 0 {
		return e.wrap(fmt.Errorf("entry %d has more messages than it announces", e.n-1))
	}
	e.msgs--
	if err := e.message(m); err != nil {
		return err
	}
	e.owed = roundUp(int64(len(text)), 8)
	return e.Payload(bytes.NewReader(text))
}

// Flush ends the image: it writes out what is buffered. An entry without its payload is an error.
func (e *Encoder) Flush() error {
	if err := e.complete(); err != nil || e.w == nil {
		return err
	}
	err := e.wrap(e.w.Flush())
	e.w.Reset(nil)
	buffers.Put(e.w)
	e.w = nil
	return err
}

func (e *Encoder) complete() error {
	if e.owed > 0 || e.msgs > 0 {
		return e.wrap(fmt.Errorf("the data of entry %d were not written", e.n-1))
	}
	return nil
}

func (e *Encoder) message(m proto.Message) error {
	var err error
	if e.buf, err = wire.Append(e.buf[:0], m); err != nil {
		return e.wrap(fmt.Errorf("entry %d: %w", e.n, err))
	}
	if len(e.buf) > math.MaxInt32 {
		return e.wrap(fmt.Errorf("entry %d has %d bytes, more than the format can hold", e.n, len(e.buf)))
	}
	e.u32(uint32(len(e.buf)))
	_, err = e.w.Write(e.buf)
	return e.wrap(err)
}

// u32 needs no error: a bufio.Writer keeps it until Flush.
func (e *Encoder) u32(v uint32) {
	e.w.Write(binary.LittleEndian.AppendUint32(e.w.AvailableBuffer(), v))
}

func (e *Encoder) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("image %s: %w", e.file, err)
}
