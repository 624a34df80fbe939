package sinks

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"cryo/internal/image"
)

// StreamSource is a set that came in as a stream.
type StreamSource struct {
	mu     sync.Mutex // a small file moves when it is opened as pages
	files  map[string]*spool
	parent *StreamSource // the set before it in the stream, nil for none
	before image.Source  // what the first of the stream builds on; nil: nothing
}

// readAhead is how much of a stream is read with a header: what follows of a frame goes where it belongs at once.
const readAhead = 16 << 10

// ReadStream reads a whole stream from r, to its end, into memory: a set, or several of which each builds on the one before.
// The last is what is returned. The first may build on the set before, which is closed with it; nil for none. Nothing is
// used before all is there: a stream that breaks off, or was damaged, is an error. One that was spread over several pipes
// needs all of them.
func ReadStream(before image.Source, from ...io.Reader) (*StreamSource, error) {
	if len(from) > 1 {
		return readSets(newShardReader(from), before)
	}
	return readSets(pipeFrames{bufio.NewReaderSize(from[0], readAhead)}, before)
}

func readSets(frames frameReader, before image.Source) (set *StreamSource, err error) {
	defer func() {
		if err == nil {
			return
		}
		if set != nil {
			set.Close()
		} else if before != nil {
			before.Close()
		}
		set, err = nil, fmt.Errorf("image stream: %w", err)
	}()
	for {
		err := frames.begin()
		switch {
		case err == io.EOF && set != nil:
			return set, nil
		case err != nil:
			return set, cutStream(err)
		}
		in := newSpooler()
		err = readSet(frames, in)
		next := &StreamSource{files: in.files, parent: set}
		if set == nil {
			next.before = before
		}
		set = next
		if err == nil {
			err = set.checkBase()
		}
		if err != nil {
			return set, err
		}
	}
}

// checkBase compares what a set says of that it builds on with what there is. The ids of runs are compared when it is read: they may
// be encrypted.
func (s *StreamSource) checkBase() error {
	switch says, has := s.files[image.ParentID] != nil, s.parent != nil || s.before != nil; {
	case says && !has:
		return errors.New("its set builds on another one, which does not come before it: pipe that into the same restore, or name it by --prev-images-dir")
	case !says && s.parent != nil:
		return errors.New("a set that builds on nothing follows another one")
	case !says && has:
		return fmt.Errorf("its set builds on nothing, and not on %s", s.before)
	}
	return nil
}

// fileTaker gets the files of a set as they come.
type fileTaker interface {
	// create begins a file, which is written, and closed at its end.
	create(name string) (io.WriteCloser, error)
}

// setReader takes one set out of frames, up to the commit.
type setReader struct {
	to     fileTaker
	names  map[string]bool
	open   []*incoming // by number; nil: complete
	frames uint64
	bytes  uint64
}

// incoming is a file that is not complete.
type incoming struct {
	io.WriteCloser
	name string
	size uint64
}

func readSet(from frameReader, to fileTaker) (err error) {
	in := &setReader{to: to, names: map[string]bool{}}
	defer func() {
		for _, f := range in.open {
			if f != nil {
				f.Close()
			}
		}
	}()
	var buf []byte
	for done := false; !done; in.frames++ {
		f, err := from.next(buf)
		if err == nil {
			buf = f.payload[:0]
			done, err = in.handle(f)
		}
		if err != nil {
			return fmt.Errorf("frame %d: %w", in.frames, err)
		}
	}
	return from.end()
}

// handle takes one frame; done after the commit.
func (in *setReader) handle(f frame) (done bool, err error) {
	if f.typ == frameOpen {
		return false, in.begin(f.file, string(f.payload))
	}
	if f.typ == frameCommit {
		return true, in.commit(f.payload)
	}
	if int64(f.file) >= int64(len(in.open)) || in.open[f.file] == nil {
		return false, fmt.Errorf("file %d is not open", f.file)
	}
	to := in.open[f.file]
	switch f.typ {
	case frameData:
		in.bytes += uint64(len(f.payload))
		to.size += uint64(len(f.payload))
		_, err = to.Write(f.payload)
	case frameEnd:
		in.open[f.file] = nil
		err = to.Close()
		if len(f.payload) != 8 || binary.LittleEndian.Uint64(f.payload) != to.size {
			err = fmt.Errorf("%s has %d bytes, which is not what its end says", to.name, to.size)
		}
	default:
		err = fmt.Errorf("type %d is not known", f.typ)
	}
	return false, err
}

func (in *setReader) begin(file uint32, name string) error {
	if err := image.CheckName(name); err != nil {
		return err
	}
	if int64(file) != int64(len(in.open)) || file >= maxFiles {
		return fmt.Errorf("file %d is opened where %d comes next", file, len(in.open))
	}
	if in.names[name] {
		return fmt.Errorf("%s is there twice", name)
	}
	w, err := in.to.create(name)
	if err != nil {
		return err
	}
	in.names[name] = true
	in.open = append(in.open, &incoming{WriteCloser: w, name: name})
	return nil
}

func (in *setReader) commit(payload []byte) error {
	if len(payload) != 16 || binary.LittleEndian.Uint64(payload) != in.frames || binary.LittleEndian.Uint64(payload[8:]) != in.bytes {
		return fmt.Errorf("%d frames with %d bytes came, which is not what the commit says", in.frames, in.bytes)
	}
	for _, f := range in.open {
		if f != nil {
			return fmt.Errorf("%s has no end", f.name)
		}
	}
	if !in.names[inventoryName] {
		return fmt.Errorf("%s has not come", inventoryName)
	}
	return nil
}

// spooler keeps all files of a set in memory.
type spooler struct{ files map[string]*spool }

func newSpooler() *spooler { return &spooler{map[string]*spool{}} }

func (s *spooler) create(name string) (io.WriteCloser, error) {
	f := &spool{name: name}
	s.files[name] = f
	return f, nil
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

// Parent is the set before it, which stays open as long as this one.
func (s *StreamSource) Parent() (image.Source, error) {
	switch {
	case s.parent != nil:
		return lentSource{s.parent}, nil
	case s.before != nil:
		return lentSource{s.before}, nil
	}
	return nil, nil
}

// lentSource is a source that somebody else closes.
type lentSource struct{ image.Source }

func (lentSource) Close() error { return nil }

// Close gives the memory back, of those before it as well.
func (s *StreamSource) Close() error {
	for _, f := range s.files {
		f.free()
	}
	switch {
	case s.parent != nil:
		return s.parent.Close()
	case s.before != nil:
		return s.before.Close()
	}
	return nil
}

func (s *StreamSource) String() string { return "stream" }

var (
	_ image.Source = (*StreamSource)(nil)
	_ image.Source = (*StreamerSource)(nil)
)
