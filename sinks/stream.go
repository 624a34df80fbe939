package sinks

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
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
// no set, whatever else is there.
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

// Stream is a set that goes out as one stream.
type Stream struct {
	mu      sync.Mutex
	w       *bufio.Writer
	err     error // of the writer, for all that come after
	files   uint32
	frames  uint64
	bytes   uint64
	pagesID uint32
}

// NewStream starts a stream on w.
func NewStream(w io.Writer) *Stream {
	s := &Stream{w: bufio.NewWriterSize(w, 64<<10), pagesID: 1}
	_, s.err = s.w.WriteString(streamMagic)
	return s
}

func (s *Stream) frame(file uint32, typ uint32, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frameLocked(file, typ, payload)
}

func (s *Stream) frameLocked(file uint32, typ uint32, payload []byte) error {
	if s.err != nil {
		return s.err
	}
	var h [frameHeader]byte
	binary.LittleEndian.PutUint32(h[0:], file)
	binary.LittleEndian.PutUint32(h[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[8:], typ)
	binary.LittleEndian.PutUint32(h[12:], checksum(h[:12], payload))
	s.frames++
	if _, s.err = s.w.Write(h[:]); s.err == nil {
		_, s.err = s.w.Write(payload)
	}
	if s.err != nil {
		s.err = fmt.Errorf("write stream: %w", s.err)
	}
	return s.err
}

func checksum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header, castagnoli()), castagnoli(), payload)
}

// Create opens a file in the stream.
func (s *Stream) Create(name string) (Writer, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &streamFile{s: s, id: s.files}
	s.files++
	return f, s.frameLocked(f.id, frameOpen, []byte(name))
}

// Pagemap makes the two files of an object. A stream has no parent.
func (s *Stream) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	s.mu.Lock()
	pagesID := s.pagesID
	s.pagesID++
	s.mu.Unlock()
	return newStreamPagemap(s, kind, id, pagesID)
}

// Commit sends the inventory and the frame that makes all before it valid.
func (s *Stream) Commit(inv *inventory.InventoryEntry) error {
	b, err := encodeInventory(inv)
	if err != nil {
		return err
	}
	return s.commit(b)
}

func (s *Stream) commit(inventory []byte) error {
	if err := writeFile(s, inventoryName, inventory); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	payload := binary.LittleEndian.AppendUint64(nil, s.frames)
	payload = binary.LittleEndian.AppendUint64(payload, s.bytes)
	if err := s.frameLocked(0, frameCommit, payload); err != nil {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("write stream: %w", err)
	}
	return nil
}

// writeFile writes a whole file.
func writeFile(to Sink, name string, b []byte) error {
	f, err := to.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// Abort sends nothing more. After Commit there is no way back.
func (s *Stream) Abort() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = errors.New("the stream was given up")
	}
	return nil
}

// Close leaves the writer to the caller.
func (s *Stream) Close() error { return nil }

// streamFile is one file of a stream.
type streamFile struct {
	s    *Stream
	id   uint32
	size uint64
}

func (f *streamFile) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n := min(len(b)-done, maxFrame)
		if err := f.s.frame(f.id, frameData, b[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	f.size += uint64(done)
	f.s.mu.Lock()
	f.s.bytes += uint64(done)
	f.s.mu.Unlock()
	return done, nil
}

func (f *streamFile) Close() error {
	return f.s.frame(f.id, frameEnd, binary.LittleEndian.AppendUint64(nil, f.size))
}

// StreamSource is a set that came in as one stream.
type StreamSource struct {
	mu    sync.Mutex // a small file moves when it is opened as pages
	files map[string]*spool
}

// readAhead is how much of a stream is read with a header: what follows of a frame goes where it belongs at once.
const readAhead = 16 << 10

// ReadStream reads a whole stream from r, into memory, up to the frame that makes it valid. Nothing of it is used
// before that: a stream that breaks off, or was damaged, is an error.
func ReadStream(r io.Reader) (*StreamSource, error) {
	in := &streamReader{r: bufio.NewReaderSize(r, readAhead), names: map[string]*spool{}}
	err := in.read()
	if err == nil && in.r.Buffered() > 0 {
		err = errors.New("something follows the commit")
	}
	if err != nil {
		for _, f := range in.names {
			f.close()
		}
		return nil, fmt.Errorf("image stream: %w", err)
	}
	return &StreamSource{files: in.names}, nil
}

type streamReader struct {
	r      *bufio.Reader
	names  map[string]*spool
	open   []*spool // by number; nil: complete
	frames uint64
	bytes  uint64
}

var errCutStream = errors.New("it breaks off before the commit: the dump did not finish, or the connection was lost")

func (in *streamReader) read() error {
	var magic [len(streamMagic)]byte
	if _, err := io.ReadFull(in.r, magic[:]); err != nil {
		return cutStream(err)
	}
	if string(magic[:]) != streamMagic {
		return fmt.Errorf("it starts with %q, which is no image stream", magic[:])
	}
	var buf []byte
	for {
		file, typ, payload, err := in.frame(buf)
		if err != nil {
			return fmt.Errorf("frame %d: %w", in.frames, err)
		}
		buf = payload[:0]
		done, err := in.handle(file, typ, payload)
		if err != nil {
			return fmt.Errorf("frame %d: %w", in.frames, err)
		}
		if done {
			return nil
		}
		in.frames++
	}
}

func cutStream(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutStream
	}
	return err
}

func (in *streamReader) frame(buf []byte) (file, typ uint32, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(in.r, h[:]); err != nil {
		return 0, 0, nil, cutStream(err)
	}
	length := binary.LittleEndian.Uint32(h[4:])
	if length > maxFrame {
		return 0, 0, nil, fmt.Errorf("it has %d bytes where at most %d are allowed", length, maxFrame)
	}
	if cap(buf) < int(length) {
		buf = make([]byte, length)
	}
	payload = buf[:length]
	if _, err := io.ReadFull(in.r, payload); err != nil {
		return 0, 0, nil, cutStream(err)
	}
	if checksum(h[:12], payload) != binary.LittleEndian.Uint32(h[12:]) {
		return 0, 0, nil, errors.New("its checksum is wrong: the stream was damaged on the way")
	}
	return binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint32(h[8:]), payload, nil
}

// handle takes one frame; done after the commit.
func (in *streamReader) handle(file, typ uint32, payload []byte) (done bool, err error) {
	if typ == frameOpen {
		return false, in.begin(file, string(payload))
	}
	if typ == frameCommit {
		return true, in.commit(payload)
	}
	if int64(file) >= int64(len(in.open)) || in.open[file] == nil {
		return false, fmt.Errorf("file %d is not open", file)
	}
	f := in.open[file]
	switch typ {
	case frameData:
		in.bytes += uint64(len(payload))
		_, err = f.Write(payload)
	case frameEnd:
		in.open[file] = nil
		if len(payload) != 8 || binary.LittleEndian.Uint64(payload) != uint64(f.size) {
			err = fmt.Errorf("%s has %d bytes, which is not what its end says", f.name, f.size)
		}
	default:
		err = fmt.Errorf("type %d is not known", typ)
	}
	return false, err
}

func (in *streamReader) begin(file uint32, name string) error {
	if err := image.CheckName(name); err != nil {
		return err
	}
	if int64(file) != int64(len(in.open)) || file >= maxFiles {
		return fmt.Errorf("file %d is opened where %d comes next", file, len(in.open))
	}
	if in.names[name] != nil {
		return fmt.Errorf("%s is there twice", name)
	}
	f := &spool{name: name}
	in.names[name], in.open = f, append(in.open, f)
	return nil
}

func (in *streamReader) commit(payload []byte) error {
	if len(payload) != 16 || binary.LittleEndian.Uint64(payload) != in.frames || binary.LittleEndian.Uint64(payload[8:]) != in.bytes {
		return fmt.Errorf("%d frames with %d bytes came, which is not what the commit says", in.frames, in.bytes)
	}
	for _, f := range in.open {
		if f != nil {
			return fmt.Errorf("%s has no end", f.name)
		}
	}
	return nil
}

// Open opens a file.
func (s *StreamSource) Open(name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[name].open(s.String(), name)
}

// Exists says whether the stream had the file.
func (s *StreamSource) Exists(name string) (bool, error) { return s.files[name] != nil, nil }

// OpenPages opens a pages file, which is in memory and can be read with pread.
func (s *StreamSource) OpenPages(id uint32) (*image.Pages, error) {
	name := image.PagesFile(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[name].pages(s.String(), name)
}

// Parent: a stream has none.
func (s *StreamSource) Parent() (image.Source, error) { return nil, nil }

// Close gives the memory back.
func (s *StreamSource) Close() error {
	for _, f := range s.files {
		f.close()
	}
	return nil
}

func (s *StreamSource) String() string { return "stream" }

var (
	_ image.Source = (*StreamSource)(nil)
	_ image.Source = (*StreamerSource)(nil)
	_ Sink         = (*Dir)(nil)
	_ Sink         = (*PageServer)(nil)
	_ Sink         = (*Streamer)(nil)
	_ Sink         = (*Stream)(nil)
)
