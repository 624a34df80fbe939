package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"cryo/internal/wire"

	"google.golang.org/protobuf/proto"
)

// Decoder reads one image, entry after entry. It holds one entry at a time.
type Decoder struct {
	file  string
	typ   *Type
	r     *bufio.Reader
	entry int   // number of the next entry
	left  int64 // bytes of the current entry's payload not read yet, or EndOfFile
	msgs  uint32
	buf   bytes.Buffer
}

// NewDecoder starts reading an image of type t from r and checks its magic numbers. file is for errors.
func NewDecoder(r io.Reader, file string, t *Type) (*Decoder, error) {
	d := &Decoder{file: file, typ: t, r: newReader(r)}
	for _, want := range t.leading() {
		got, err := d.u32()
		if err != nil {
			return nil, d.fail(-1, cut(err, "the magic number"))
		}
		if got != want {
			return nil, d.fail(-1, fmt.Errorf("magic number is %#x where %s has %#x", got, t.Name, want))
		}
	}
	return d, nil
}

// Most images of a task are small, and a set of a thousand tasks has thousands of them.
const smallImage, largeImage = 8 << 10, 32 << 10

// smallReaders are the readers of small images that have been read.
var smallReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, smallImage) }}

// newReader reads from r as much at a time as an image has.
func newReader(r io.Reader) *bufio.Reader {
	if f, ok := r.(interface{ Size() int64 }); ok && f.Size() < smallImage {
		b := smallReaders.Get().(*bufio.Reader)
		b.Reset(r)
		return b
	}
	return bufio.NewReaderSize(r, largeImage)
}

// release gives the reader of a small image back. The decoder must not be used any more.
func (d *Decoder) release() {
	if d.r != nil && d.r.Size() == smallImage {
		d.r.Reset(nil)
		smallReaders.Put(d.r)
	}
	d.r = nil
}

// DetectDecoder starts reading an image of whatever type its magic number says. Images of format v1.0, which
// had one magic number only, are read too.
func DetectDecoder(r io.Reader, file string) (*Decoder, error) {
	d := &Decoder{file: file, r: bufio.NewReaderSize(r, 32<<10)}
	number, err := d.u32()
	if err == nil && (number == uint32(magics.ByName["IMG_COMMON"]) || number == uint32(magics.ByName["IMG_SERVICE"])) {
		number, err = d.u32()
	}
	if err != nil {
		return nil, d.fail(-1, cut(err, "the magic number"))
	}
	if d.typ = TypeByMagic(number); d.typ == nil {
		return nil, d.fail(-1, &UnknownMagicError{number})
	}
	return d, nil
}

// UnknownMagicError says that no kind of image starts like this one.
type UnknownMagicError struct{ Magic uint32 }

func (e *UnknownMagicError) Error() string {
	return fmt.Sprintf("unknown magic number %#x: raw data or no image", e.Magic)
}

// Type is the type of the image.
func (d *Decoder) Type() *Type { return d.typ }

// File is the name the image was opened by.
func (d *Decoder) File() string { return d.file }

// Entry is the number of the entry read last.
func (d *Decoder) Entry() int { return d.entry - 1 }

// Next reads the next entry into a new message, skipping what is left of the payload of the one before. It
// returns io.EOF, alone, after the last entry.
func (d *Decoder) Next() (proto.Message, error) {
	m := d.typ.entry(d.entry)
	return m, d.NextInto(m)
}

// NextInto is Next into a message of the caller's, for images with many small entries.
func (d *Decoder) NextInto(m proto.Message) error {
	if err := d.skip(); err != nil {
		return err
	}
	if err := d.message(m, d.typ.MaxEntry); err != nil {
		if err == io.EOF {
			return err
		}
		return d.fail(d.entry, err)
	}
	d.entry++
	if d.typ.Payload != nil {
		d.left = d.typ.Payload(m)
	}
	if d.typ.Messages != nil {
		d.msgs = d.typ.Messages(m)
	}
	return nil
}

// NextBytes is Next for images with so many small entries that a message for each is too much: the encoded entry,
// valid until the next call. It is for kinds without payload.
func (d *Decoder) NextBytes() ([]byte, error) {
	b, err := d.raw(d.typ.MaxEntry)
	if err != nil {
		if err == io.EOF {
			return nil, err
		}
		return nil, d.fail(d.entry, err)
	}
	d.entry++
	return b, nil
}

// Payload reads the raw bytes after the current entry: as many as the entry said, padding included, an error
// when the file has fewer.
func (d *Decoder) Payload() io.Reader { return (*payloadReader)(d) }

// PayloadLen is how many bytes of the payload are left to read; EndOfFile when that is where they end.
func (d *Decoder) PayloadLen() int64 { return d.left }

// PayloadBytes reads the whole payload, which must not be longer than limit.
func (d *Decoder) PayloadBytes(limit int64) ([]byte, error) {
	if d.left > limit {
		return nil, d.fail(d.entry-1, fmt.Errorf("%d bytes of data where at most %d are accepted", d.left, limit))
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(d.Payload(), limit+1))
	if err == nil && n > limit {
		err = d.fail(d.entry-1, fmt.Errorf("more than %d bytes of data", limit))
	}
	return b.Bytes(), err
}

// Message reads the next message of a SysV message queue, the current entry, into m; size tells how long its
// text is, which is returned. io.EOF after the last one.
func (d *Decoder) Message(m proto.Message, size func() uint32) ([]byte, error) {
	if d.msgs == 0 {
		return nil, io.EOF
	}
	err := d.message(m, defaultMaxEntry)
	if err == nil {
		d.msgs--
		d.left = roundUp(int64(size()), 8)
		var text []byte
		if text, err = d.PayloadBytes(1 << 31); err == nil {
			return text[:size()], nil
		}
		return nil, err
	}
	return nil, d.fail(d.entry-1, cut(err, "its messages"))
}

// skip goes past what the caller did not read of the current entry.
func (d *Decoder) skip() error {
	for d.msgs > 0 {
		// The length of the text is in the message, so each one has to be decoded.
		m := newIPCMsg()
		if _, err := d.Message(m, m.GetMsize); err != nil {
			return err
		}
	}
	if d.left != 0 {
		if _, err := io.Copy(io.Discard, d.Payload()); err != nil {
			return err
		}
	}
	return nil
}

// message reads a message and its size. io.EOF only when the file ended before the size.
func (d *Decoder) message(m proto.Message, limit uint32) error {
	b, err := d.raw(limit)
	if err != nil {
		return err
	}
	return wire.Unmarshal(b, m)
}

// raw reads u32 size and that many bytes.
func (d *Decoder) raw(limit uint32) ([]byte, error) {
	size, err := d.u32()
	if err != nil {
		if err == io.EOF {
			return nil, err
		}
		return nil, cut(err, "the size of the entry")
	}
	if size > limit {
		return nil, fmt.Errorf("%d bytes long where at most %d are accepted", size, limit)
	}
	b, err := d.bytes(int(size))
	if err != nil {
		return nil, cut(err, fmt.Sprintf("an entry of %d bytes", size))
	}
	return b, nil
}

// bytes reads n bytes into a buffer that is valid until the next call and grows with what is there: a size
// that lies costs no memory.
func (d *Decoder) bytes(n int) ([]byte, error) {
	if n <= d.r.Size() {
		b, err := d.r.Peek(n)
		if err == nil {
			_, err = d.r.Discard(n)
		}
		return b, err
	}
	d.buf.Reset()
	_, err := io.CopyN(&d.buf, d.r, int64(n))
	return d.buf.Bytes(), err
}

func (d *Decoder) u32() (uint32, error) {
	b, err := d.r.Peek(4)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	v := binary.LittleEndian.Uint32(b)
	d.r.Discard(4)
	return v, nil
}

func (d *Decoder) fail(n int, err error) error {
	return &FormatError{File: d.file, Entry: n, Err: err}
}

// payloadReader is the Decoder seen as the reader of the current payload.
type payloadReader Decoder

func (p *payloadReader) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	if p.left == EndOfFile {
		return p.r.Read(b)
	}
	n, err := p.r.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	if errors.Is(err, io.EOF) && p.left > 0 {
		d := (*Decoder)(p)
		return n, d.fail(p.entry-1, cut(err, fmt.Sprintf("its data, %d bytes missing", p.left)))
	}
	if p.left == 0 {
		err = nil
	}
	return n, err
}
