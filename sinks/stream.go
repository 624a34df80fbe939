package sinks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
)

// StreamOptions are the choices of a stream.
type StreamOptions struct {
	// Parent is the set this one builds on, nil for none; its index is enough (see image.InIndex). The stream closes it.
	Parent image.Source
	// Index gets the index of the set, so that the next one can build on it; nil: it is not kept. The stream closes it.
	Index *Dir
}

// Stream is a set that goes out as one stream.
type Stream struct {
	opt      StreamOptions
	parentID string

	mu      sync.Mutex
	w       frameWriter
	err     error // of the writer, for all that come after
	files   uint32
	frames  uint64
	bytes   uint64
	pagesID uint32
}

// NewStream starts a stream on a writer, or spread over several.
func NewStream(opt StreamOptions, to ...io.Writer) *Stream {
	if len(to) > 1 {
		return &Stream{opt: opt, w: newShardWriter(to), pagesID: 1}
	}
	p := newOnePipe(to[0])
	return &Stream{opt: opt, w: p, pagesID: 1, err: p.start()}
}

// NameParent has the stream say which run made the set it builds on. Call it before the first file is created.
func (s *Stream) NameParent(id string) { s.parentID = id }

// base implements chained.
func (s *Stream) base() image.Source { return s.opt.Parent }

func (s *Stream) put(f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.putLocked(f)
}

func (s *Stream) putLocked(f frame) error { return s.sendLocked(func() error { return s.w.put(f) }) }

// sendLocked has a frame sent.
func (s *Stream) sendLocked(send func() error) error {
	if s.err != nil {
		return s.err
	}
	s.frames++
	if s.err = send(); s.err != nil {
		s.err = fmt.Errorf("write stream: %w", s.err)
	}
	return s.err
}

// Create opens a file in the stream.
func (s *Stream) Create(name string) (Writer, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	f, err := s.begin(name)
	if err != nil || s.opt.Index == nil || !image.InIndex(name) {
		return f, err
	}
	again, err := s.opt.Index.Create(name)
	if err != nil {
		return nil, err
	}
	return &twice{f, again}, nil
}

func (s *Stream) begin(name string) (*streamFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.parentID; id != "" && s.files == 0 {
		s.files++
		err := errors.Join(s.putLocked(frame{0, frameOpen, []byte(image.ParentID)}), s.putLocked(frame{0, frameData, []byte(id)}),
			s.putLocked(frame{0, frameEnd, binary.LittleEndian.AppendUint64(nil, uint64(len(id)))}))
		if err != nil {
			return nil, err
		}
		s.bytes += uint64(len(id))
	}
	f := &streamFile{s: s, id: s.files}
	s.files++
	return f, s.putLocked(frame{f.id, frameOpen, []byte(name)})
}

// twice is a file that goes to two places.
type twice struct{ first, second Writer }

func (t *twice) Write(b []byte) (int, error) {
	if n, err := t.first.Write(b); err != nil {
		return n, err
	}
	return t.second.Write(b)
}

func (t *twice) Close() error { return errors.Join(t.first.Close(), t.second.Close()) }

// Pagemap makes the two files of an object.
func (s *Stream) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	s.mu.Lock()
	pagesID := s.pagesID
	s.pagesID++
	s.mu.Unlock()
	parent, err := openParentRuns(s.opt.Parent, kind, id)
	if err != nil {
		return nil, err
	}
	return newStreamPagemap(s, kind, id, pagesID, parent)
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
	f, err := s.begin(inventoryName)
	if err == nil {
		_, err = f.Write(inventory)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return err
	}
	if err := s.end(); err != nil {
		return err
	}
	if s.opt.Index != nil {
		return s.opt.Index.commit(inventory)
	}
	return nil
}

// end sends the frame of the commit.
func (s *Stream) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	payload := binary.LittleEndian.AppendUint64(nil, s.frames)
	payload = binary.LittleEndian.AppendUint64(payload, s.bytes)
	if err := s.putLocked(frame{0, frameCommit, payload}); err != nil {
		return err
	}
	if err := s.w.flush(); err != nil {
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

// Abort sends nothing more, and removes the index. After Commit there is no way back for what was sent.
func (s *Stream) Abort() error {
	s.mu.Lock()
	if s.err == nil {
		s.err = errors.New("the stream was given up")
	}
	s.mu.Unlock()
	if s.opt.Index != nil {
		return s.opt.Index.Abort()
	}
	return nil
}

// Close leaves the writer to the caller.
func (s *Stream) Close() error {
	s.mu.Lock()
	if s.err == nil {
		s.err = errors.New("the stream is closed")
	}
	s.w.close()
	s.mu.Unlock()
	var err error
	if s.opt.Index != nil {
		err = s.opt.Index.Close()
	}
	if s.opt.Parent != nil {
		err = errors.Join(err, s.opt.Parent.Close())
	}
	return err
}

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
		if err := f.s.put(frame{f.id, frameData, b[done : done+n]}); err != nil {
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
	return f.s.put(frame{f.id, frameEnd, binary.LittleEndian.AppendUint64(nil, f.size)})
}

var (
	_ Sink = (*Dir)(nil)
	_ Sink = (*PageServer)(nil)
	_ Sink = (*Streamer)(nil)
	_ Sink = (*Stream)(nil)
)
