package sinks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"

	"cryo/internal/image"

	img_streamer "github.com/checkpoint-restore/go-criu/v8/crit/images/img-streamer"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// criu-image-streamer listens on a socket in the images directory. Every file is a request with its name and a pipe
// that carries its bytes; in the direction of a restore an answer says whether there is such a file, and each may be
// asked for once. The end of the connection says that no more files will be opened.
const (
	captureSocket = "streamer-capture.sock"
	serveSocket   = "streamer-serve.sock"
)

// streamer is the connection, for both directions.
type streamer struct {
	mu   sync.Mutex // one request at a time
	conn *net.UnixConn
	path string
}

// dialStreamer connects to the socket called name in dir. Going through the descriptor of the directory makes paths
// of any length fit into a socket address.
func dialStreamer(dir, name string) (*streamer, error) {
	d, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open images directory: %w", err)
	}
	defer d.Close()
	addr := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)}
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to criu-image-streamer at %s/%s, is it running: %w", dir, name, errors.Unwrap(err))
	}
	return &streamer{conn: conn, path: dir}, nil
}

func (s *streamer) send(m proto.Message) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4), m)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	_, err = s.conn.Write(b)
	return s.wrap(err)
}

// maxReply is far more than the only answer there is.
const maxReply = 64

func (s *streamer) receive(m proto.Message) error {
	var size [4]byte
	if _, err := io.ReadFull(s.conn, size[:]); err != nil {
		return s.wrap(fmt.Errorf("it does not answer: %w", err))
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxReply {
		return s.wrap(fmt.Errorf("its answer has %d bytes", n))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		return s.wrap(err)
	}
	return s.wrap(proto.Unmarshal(b, m))
}

// pipe makes a pipe, gives the streamer one end and returns the other.
func (s *streamer) pipe(name string, writing bool) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ours, theirs := r, w
	if writing {
		ours, theirs = w, r
	}
	defer theirs.Close()
	// File.Fd would make our end's twin blocking; the raw descriptor is all that is needed.
	raw, err := theirs.SyscallConn()
	if err != nil {
		ours.Close()
		return nil, err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		// The other side reads the pipe's end in blocking mode, as criu's are.
		serr = unix.SetNonblock(int(fd), false)
		if serr == nil {
			_, _, serr = s.conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil)
		}
	})
	if err := errors.Join(err, serr); err != nil {
		ours.Close()
		return nil, s.wrap(fmt.Errorf("%s: %w", name, err))
	}
	return ours, nil
}

func (s *streamer) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("criu-image-streamer at %s: %w", s.path, err)
}

// Streamer is a set that goes to criu-image-streamer. It holds no file, so Abort only leaves the stream without an
// inventory, which makes it no set.
type Streamer struct {
	*streamer
	ids     sync.Mutex
	pagesID uint32
}

// NewStreamer connects to the streamer that listens in the images directory dir.
func NewStreamer(dir string) (*Streamer, error) {
	s, err := dialStreamer(dir, captureSocket)
	if err != nil {
		return nil, err
	}
	return &Streamer{streamer: s, pagesID: 1}, nil
}

// Create makes an image file, a pipe to the streamer.
func (s *Streamer) Create(name string) (Writer, error) { return s.create(name) }

func (s *Streamer) create(name string) (*os.File, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.send(&img_streamer.ImgStreamerRequestEntry{Filename: &name}); err != nil {
		return nil, err
	}
	return s.pipe(name, true)
}

// Pagemap makes the two files of an object. Incremental sets cannot be streamed.
func (s *Streamer) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	s.ids.Lock()
	pagesID := s.pagesID
	s.pagesID++
	s.ids.Unlock()
	return newStreamPagemap(s, kind, id, pagesID, nil)
}

// Commit sends the inventory and ends the connection.
func (s *Streamer) Commit(inv *inventory.InventoryEntry) error {
	b, err := encodeInventory(inv)
	if err != nil {
		return err
	}
	return s.commit(b)
}

func (s *Streamer) commit(inventory []byte) error {
	if err := writeFile(s, inventoryName, inventory); err != nil {
		return err
	}
	return s.conn.Close()
}

// Abort ends the connection.
func (s *Streamer) Abort() error { return s.Close() }

// Close ends the connection.
func (s *Streamer) Close() error {
	if err := s.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// streamPagemap is a page map whose two files are not seekable.
type streamPagemap struct {
	runs
	maps    Writer
	pages   Writer
	enc     *image.Encoder
	parent  *parentRuns // nil: no parent
	written int64
	spliced bool // some of it
}

func newStreamPagemap(set image.Creator, kind image.PagemapKind, id uint64, pagesID uint32, parent *parentRuns) (*streamPagemap, error) {
	name := kind.Kind().File(id)
	maps, err := set.Create(name)
	if err != nil {
		return nil, err
	}
	pages, err := set.Create(image.PagesFile(pagesID))
	if err != nil {
		return nil, errors.Join(err, maps.Close())
	}
	p := &streamPagemap{maps: maps, pages: pages, parent: parent, enc: image.NewEncoder(maps, name, kind.Kind().Type)}
	p.runs = runs{name: name, emit: p.store}
	return p, p.enc.Entry(&pagemap.PagemapHead{PagesId: &pagesID})
}

func (p *streamPagemap) store(run image.Run) error {
	if run.Flags&image.PEParent != 0 {
		if err := p.parent.covers(run); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return p.enc.Run(run)
}

func (p *streamPagemap) Add(vaddr, pages uint64, flags uint32) error {
	return p.add(vaddr, pages, flags)
}
func (p *streamPagemap) HasParent() (bool, error)        { return p.parent != nil, nil }
func (p *streamPagemap) Direct() (*os.File, int64, bool) { return nil, 0, false }
func (p *streamPagemap) Reserve(int64) int64             { return 0 }
func (p *streamPagemap) Advance(int64)                   {}

func (p *streamPagemap) Write(b []byte) (int, error) {
	n, err := p.pages.Write(b)
	p.written += int64(n)
	return n, err
}

// Splices implements pagecopy.Piped.
func (p *streamPagemap) Splices() bool {
	s, ok := p.pages.(spliced)
	return ok && s.splices()
}

// Seed implements pagecopy.Piped.
func (p *streamPagemap) Seed(n int) uint32 { return p.pages.(spliced).seed(n) }

// Splice implements pagecopy.Piped.
func (p *streamPagemap) Splice(pipe, n int, sum uint32) error {
	p.spliced = true
	p.written += int64(n)
	return p.pages.(spliced).splice(pipe, n, sum)
}

func (p *streamPagemap) Close() error {
	if p.parent != nil {
		defer p.parent.Close()
	}
	var settled error
	if p.spliced {
		settled = p.pages.(spliced).settle()
	}
	return errors.Join(settled, p.finish(p.written), p.enc.Flush(), p.maps.Close(), p.pages.Close())
}

// StreamerSource is a set that comes from criu-image-streamer. The streamer gives out each file once, so they
// are kept in memory when they are opened first.
type StreamerSource struct {
	*streamer
	files map[string]*spool // nil value: the streamer has none of that name
}

// OpenStreamer connects to the streamer that serves in the images directory dir.
func OpenStreamer(dir string) (*StreamerSource, error) {
	s, err := dialStreamer(dir, serveSocket)
	if err != nil {
		return nil, err
	}
	return &StreamerSource{streamer: s, files: map[string]*spool{}}, nil
}

// request asks for a file; fs.ErrNotExist when there is none. The caller holds mu.
func (s *StreamerSource) request(name string) (*os.File, error) {
	if err := s.send(&img_streamer.ImgStreamerRequestEntry{Filename: &name}); err != nil {
		return nil, err
	}
	var reply img_streamer.ImgStreamerReplyEntry
	if err := s.receive(&reply); err != nil {
		return nil, err
	}
	if !reply.GetExists() {
		return nil, &fs.PathError{Op: "open", Path: s.path + "/" + name, Err: fs.ErrNotExist}
	}
	return s.pipe(name, false)
}

func (s *StreamerSource) fetch(name string) (*spool, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, asked := s.files[name]; asked {
		return f, nil
	}
	pipe, err := s.request(name)
	if errors.Is(err, fs.ErrNotExist) {
		s.files[name] = nil
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer pipe.Close()
	f := &spool{name: name}
	// Large steps: a pages file may have gigabytes. The pipe's own WriteTo would take small ones.
	if _, err := io.CopyBuffer(f, struct{ io.Reader }{pipe}, make([]byte, 1<<20)); err != nil {
		return nil, s.wrap(fmt.Errorf("%s: %w", name, err))
	}
	s.files[name] = f
	return f, nil
}

// Open opens a file.
func (s *StreamerSource) Open(name string) (io.ReadCloser, error) {
	f, err := s.fetch(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.open(s.path, name)
}

// Exists asks for the file, and keeps it.
func (s *StreamerSource) Exists(name string) (bool, error) {
	f, err := s.fetch(name)
	return f != nil, err
}

// OpenPages opens a pages file. Tasks that share memory since a fork read the same pages more than once, so it is
// kept too.
func (s *StreamerSource) OpenPages(id uint32) (*image.Pages, error) {
	name := image.PagesFile(id)
	f, err := s.fetch(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.pages(s.path, name)
}

// Parent: a stream has none.
func (s *StreamerSource) Parent() (image.Source, error) { return nil, nil }

// Close ends the connection and gives the memory back.
func (s *StreamerSource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		f.free()
	}
	return s.conn.Close()
}

func (s *StreamerSource) String() string { return s.path + " (criu-image-streamer)" }
