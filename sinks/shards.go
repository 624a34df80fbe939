package sinks

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// A stream may be spread over several pipes, its shards: every shard starts with
//
//	8 bytes   shardMagic
//	16 bytes  which stream it belongs to, random
//	u32 u32   the number of the shard, and how many there are
//	u32       CRC-32C of all that
//
// and has each frame preceded by u64, its number in the stream: they go to the shards in turn. Behind the last of them every shard
// has a frame of type 5 with u64, how many frames the stream has.
const (
	shardMagic    = "CRYOSHRD"
	shardHeader   = len(shardMagic) + 16 + 8 + 4
	frameShardEnd = 5
	numberSize    = 8
)

// MaxShards is how many pipes a stream is spread over at most.
const MaxShards = 64

// shardAhead is how many frames may be on their way to or from one pipe. Memory is bounded by it.
const shardAhead = 2

// shardBuffers keeps what frames are copied into, with room for number and header.
var shardBuffers = sync.Pool{New: func() any { return new([]byte) }}

// shardWriter spreads frames over pipes, each of which is written by a goroutine of its own.
type shardWriter struct {
	pipes []*shardPipe
	n     uint64
	ended bool
}

type shardPipe struct {
	frames chan *[]byte
	ended  chan struct{}
	mu     sync.Mutex
	err    error
}

func newShardWriter(to []io.Writer) *shardWriter {
	s := &shardWriter{}
	head := make([]byte, 0, shardHeader)
	head = append(head, shardMagic...)
	head = append(head, make([]byte, 16)...)
	rand.Read(head[len(shardMagic):])
	for i, w := range to {
		p := &shardPipe{frames: make(chan *[]byte, shardAhead), ended: make(chan struct{})}
		s.pipes = append(s.pipes, p)
		mine := binary.LittleEndian.AppendUint32(append([]byte(nil), head...), uint32(i))
		mine = binary.LittleEndian.AppendUint32(mine, uint32(len(to)))
		mine = binary.LittleEndian.AppendUint32(mine, crc32.Checksum(mine, castagnoli()))
		go p.run(w, mine)
	}
	return s
}

// run writes what comes. After an error it goes on taking it, so that nobody waits for ever.
func (p *shardPipe) run(w io.Writer, head []byte) {
	defer close(p.ended)
	_, err := w.Write(head)
	p.note(err)
	for b := range p.frames {
		if p.failed() == nil {
			sealFrame((*b)[numberSize:])
			_, err := w.Write(*b)
			p.note(err)
		}
		shardBuffers.Put(b)
	}
}

// sealFrame puts the checksum into a frame.
func sealFrame(b []byte) {
	binary.LittleEndian.PutUint32(b[12:], checksum(b[:12], b[frameHeader:]))
}

func (p *shardPipe) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *shardPipe) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *shardPipe) put(number uint64, f frame) error {
	b := shardBuffers.Get().(*[]byte)
	*b = binary.LittleEndian.AppendUint64((*b)[:0], number)
	*b = binary.LittleEndian.AppendUint32(*b, f.file)
	*b = binary.LittleEndian.AppendUint32(*b, uint32(len(f.payload)))
	*b = binary.LittleEndian.AppendUint32(*b, f.typ)
	*b = append(append(*b, 0, 0, 0, 0), f.payload...)
	p.frames <- b
	return p.failed()
}

func (s *shardWriter) put(f frame) error {
	number := s.n
	s.n++
	return s.pipes[number%uint64(len(s.pipes))].put(number, f)
}

// flush ends all shards and waits until they are written.
func (s *shardWriter) flush() error {
	var errs []error
	for _, p := range s.pipes {
		errs = append(errs, p.put(s.n, frame{0, frameShardEnd, binary.LittleEndian.AppendUint64(nil, s.n)}))
	}
	s.close()
	for _, p := range s.pipes {
		<-p.ended
		errs = append(errs, p.failed())
	}
	return errors.Join(errs...)
}

// close ends the goroutines.
func (s *shardWriter) close() {
	if s.ended {
		return
	}
	s.ended = true
	for _, p := range s.pipes {
		close(p.frames)
	}
}

// shardReader puts the frames of several pipes in order again. Each is read by a goroutine of its own, up to the end of its
// shard and not beyond.
type shardReader struct {
	from   []io.Reader
	shards []chan shardFrame // by number
	stop   chan struct{}
	n      uint64
	lent   *[]byte // what the last frame is in
}

type shardFrame struct {
	frame
	number uint64
	buf    *[]byte
	err    error
}

func newShardReader(from []io.Reader) *shardReader { return &shardReader{from: from} }

// begin reads the headers of all shards, whose pipes may come in any order.
func (s *shardReader) begin() error {
	s.shards, s.n, s.stop = make([]chan shardFrame, len(s.from)), 0, make(chan struct{})
	var id string
	var over []int
	heads := map[int]io.Reader{}
	for i, r := range s.from {
		head, err := readShardHeader(r)
		switch {
		case err == io.EOF:
			over = append(over, i)
			continue
		case err != nil:
			return fmt.Errorf("shard %d: %w", i, err)
		case int(head.count) != len(s.from):
			return fmt.Errorf("it was spread over %d pipes, and %d are here", head.count, len(s.from))
		case int(head.index) >= len(s.from) || heads[int(head.index)] != nil:
			return fmt.Errorf("shard %d comes twice", head.index)
		case id != "" && id != head.id:
			return errors.New("its shards are of different streams")
		}
		id, heads[int(head.index)] = head.id, r
	}
	switch {
	case len(over) == len(s.from):
		return io.EOF
	case len(over) > 0:
		return fmt.Errorf("pipe %d of %d has nothing: a shard is lost", over[0]+1, len(s.from))
	}
	for i, r := range heads {
		s.shards[i] = make(chan shardFrame, shardAhead)
		go s.read(r, s.shards[i])
	}
	return nil
}

type shardHead struct {
	id           string
	index, count uint32
}

func readShardHeader(r io.Reader) (shardHead, error) {
	var b [shardHeader]byte
	if _, err := io.ReadFull(r, b[:]); err == io.EOF {
		return shardHead{}, io.EOF
	} else if err != nil {
		return shardHead{}, cutStream(err)
	}
	at := len(shardMagic)
	if string(b[:at]) != shardMagic || crc32.Checksum(b[:shardHeader-4], castagnoli()) != binary.LittleEndian.Uint32(b[shardHeader-4:]) {
		return shardHead{}, fmt.Errorf("%q is not how a part of an image stream starts", b[:at])
	}
	return shardHead{string(b[at : at+16]), binary.LittleEndian.Uint32(b[at+16:]), binary.LittleEndian.Uint32(b[at+20:])}, nil
}

// read reads one shard ahead of who wants its frames.
func (s *shardReader) read(r io.Reader, to chan<- shardFrame) {
	for {
		f := shardFrame{buf: shardBuffers.Get().(*[]byte)}
		var number [numberSize]byte
		if _, f.err = io.ReadFull(r, number[:]); f.err != nil {
			f.err = cutStream(f.err)
		} else {
			f.number = binary.LittleEndian.Uint64(number[:])
			f.frame, f.err = readFrame(r, *f.buf)
			*f.buf = f.payload
		}
		last := f.err != nil || f.typ == frameShardEnd
		select {
		case to <- f:
		case <-s.stop:
			return
		}
		if last {
			return
		}
	}
}

// next returns the next frame, whose payload is valid until the one after it. The buffer of the caller is not needed.
func (s *shardReader) next([]byte) (frame, error) {
	f, err := s.take(s.n % uint64(len(s.shards)))
	if err == nil && f.typ == frameShardEnd {
		err = errCutStream
	}
	s.n++
	return f, err
}

func (s *shardReader) take(shard uint64) (frame, error) {
	f := <-s.shards[shard]
	if f.err == nil && f.number != s.n {
		f.err = fmt.Errorf("shard %d has frame %d where %d belongs", shard, f.number, s.n)
	}
	if f.err != nil {
		close(s.stop)
		return frame{}, fmt.Errorf("shard %d: %w", shard, f.err)
	}
	if s.lent != nil {
		shardBuffers.Put(s.lent)
	}
	s.lent = f.buf
	return f.frame, nil
}

// end checks that every shard is complete.
func (s *shardReader) end() error {
	for i := range s.shards {
		f, err := s.take(uint64(i))
		if err == nil && (f.typ != frameShardEnd || len(f.payload) != 8 || binary.LittleEndian.Uint64(f.payload) != s.n) {
			err = fmt.Errorf("shard %d goes on after the commit", i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
