package sinks

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"cryo/internal/image"
	"cryo/internal/pagexfer"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// PageServer is a set whose page maps and pages go to a page server, criu 4.2's or this one's (ServePages), while
// everything else goes to a directory. The inventory is written after the server's last word.
type PageServer struct {
	meta *Dir
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	tls  bool
	last uint16     // the command that ends the session
	keep bool       // see KeepIndex
	turn sync.Mutex // held by the page map that is being sent: the protocol knows one at a time
}

// NewPageServer makes a sink of a directory and a connection to a page server; it takes over both. borrowed says
// that others hold the socket too (it was handed to this process), so that the server is told to end rather than
// left to see the connection close.
func NewPageServer(meta *Dir, conn net.Conn, borrowed bool) *PageServer {
	s := &PageServer{
		meta: meta, conn: conn, last: pagexfer.Close,
		r: bufio.NewReader(conn), w: bufio.NewWriterSize(conn, 256<<10),
	}
	_, s.tls = conn.(*tls.Conn)
	if borrowed {
		s.last = pagexfer.ForceClose
	}
	return s
}

// Create makes a metadata file in the directory.
func (s *PageServer) Create(name string) (Writer, error) { return s.meta.Create(name) }

// Pagemap makes a page map that is sent from its first Add to its Close, alone. The server numbers pages files in
// that order.
func (s *PageServer) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	return s.pagemap(kind, id), nil
}

func (s *PageServer) pagemap(kind image.PagemapKind, id uint64) *serverPagemap {
	p := &serverPagemap{s: s, object: pagexfer.Object(kind, id)}
	p.runs = runs{name: kind.Kind().File(id), emit: p.send}
	return p
}

// sentPrefix is what the names of page maps begin with that tell what was sent.
const sentPrefix = "sent-"

// IsSent says whether a file is such a page map.
func IsSent(name string) bool { return strings.HasPrefix(name, sentPrefix) }

// KeepIndex has the directory get page maps of what is sent, so that the next set that builds on this one knows what
// the server has.
func (s *PageServer) KeepIndex() { s.keep = true }

// Interrupt ends whatever waits for the server, now and later, by an error.
func (s *PageServer) Interrupt() { s.conn.SetDeadline(time.Unix(1, 0)) }

// Server is the page server that a sink sends its pages to, nil for none.
func Server(to Sink) *PageServer {
	if c, ok := to.(*Compressed); ok {
		to = c.Sink
	}
	s, _ := to.(*PageServer)
	return s
}

// Sent is what a set in src has sent to a page server: a set of page maps without pages.
func Sent(src image.Source) image.Source { return sent{src} }

type sent struct{ image.Source }

func (s sent) Open(name string) (io.ReadCloser, error) { return s.Source.Open(sentPrefix + name) }
func (s sent) Exists(name string) (bool, error)        { return s.Source.Exists(sentPrefix + name) }

// HasParent asks the server whether its parent set has the object.
func (s *PageServer) HasParent(kind image.PagemapKind, id uint64) (bool, error) {
	if err := s.meta.prepare(); err != nil {
		return false, err
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	answer, err := s.ask(pagexfer.Msg{Cmd: pagexfer.Parent, Object: pagexfer.Object(kind, id)}, 4)
	return answer != 0, err
}

// Commit waits until the server has everything, then makes the directory valid.
func (s *PageServer) Commit(inv *inventory.InventoryEntry) error {
	status, err := s.ask(pagexfer.Msg{Cmd: s.last}, 4)
	if err != nil {
		return err
	}
	if status != 0 {
		return s.fail(fmt.Errorf("it reports status %d", int32(status)))
	}
	// The server waits for the end of the connection.
	if err := s.conn.Close(); err != nil {
		return s.fail(err)
	}
	return s.meta.Commit(inv)
}

// Abort breaks the connection, which makes the server give up its files, and cleans the directory.
func (s *PageServer) Abort() error {
	s.conn.Close()
	return s.meta.Abort()
}

// Close gives back connection and directory.
func (s *PageServer) Close() error {
	s.conn.Close()
	return s.meta.Close()
}

// ask sends a message and reads an answer of size bytes.
func (s *PageServer) ask(m pagexfer.Msg, size int) (uint32, error) {
	if err := s.put(m); err != nil {
		return 0, err
	}
	if err := s.w.Flush(); err != nil {
		return 0, s.fail(err)
	}
	var b [4]byte
	if _, err := io.ReadFull(s.r, b[:size]); err != nil {
		return 0, s.fail(fmt.Errorf("it does not answer: %w", err))
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

func (s *PageServer) put(m pagexfer.Msg) error {
	var b [pagexfer.Size]byte
	_, err := s.w.Write(m.Append(b[:0]))
	if err == nil && s.tls {
		err = s.w.Flush() // a record by itself
	}
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// send sends bytes that belong to a message.
func (s *PageServer) send(b []byte) error {
	if _, err := s.w.Write(b); err != nil {
		return s.fail(err)
	}
	return nil
}

func (s *PageServer) fail(err error) error {
	return fmt.Errorf("page server at %s: %w", s.conn.RemoteAddr(), err)
}

// serverPagemap is one object on its way to the server. A run's message has to be there before its bytes, so runs
// are sent as they are added and are not merged.
type serverPagemap struct {
	runs
	s         *PageServer
	object    uint64
	open      bool
	hasParent bool
	packed    bool // pages go in compressed blocks
	index     *image.Encoder
	indexFile Writer
	written   int64
	start     int64 // written when the run began
}

// begin waits for this object's turn and opens it.
func (p *serverPagemap) begin() error {
	if p.open {
		return nil
	}
	p.s.turn.Lock()
	p.open = true
	if err := p.s.meta.prepare(); err != nil { // a server with the same directory looks for the link to the parent
		return err
	}
	m := pagexfer.Msg{Cmd: pagexfer.Open2, Object: p.object}
	if p.packed {
		m.Pages = pagexfer.AskPacked
	}
	answer, err := p.s.ask(m, 1)
	if err != nil {
		return err
	}
	p.hasParent = answer&pagexfer.HasParent != 0
	if p.packed && answer&pagexfer.TakesPacked == 0 {
		return p.s.fail(errors.New("it takes no compressed pages, as criu's do not: leave --compress out, or start the page server of this program there"))
	}
	if p.s.keep {
		return p.keepIndex()
	}
	return nil
}

// keepIndex begins the page map of what is sent.
func (p *serverPagemap) keepIndex() (err error) {
	name := sentPrefix + p.name
	if p.indexFile, err = p.s.meta.Create(name); err != nil {
		return err
	}
	kind, _, err := pagexfer.ParseObject(p.object)
	if err != nil {
		return err
	}
	p.index = image.NewEncoder(p.indexFile, name, kind.Kind().Type)
	return p.index.Entry(&pagemap.PagemapHead{PagesId: new(uint32)})
}

// note writes down what has been sent.
func (p *serverPagemap) note(run image.Run) error {
	if p.index == nil {
		return nil
	}
	return p.index.Run(run)
}

func (p *serverPagemap) HasParent() (bool, error) {
	err := p.begin()
	return p.hasParent, err
}

func (p *serverPagemap) Add(vaddr, pages uint64, flags uint32) error {
	if err := p.begin(); err != nil {
		return err
	}
	if p.written != p.present {
		return fmt.Errorf("%s: a run at %#x before all bytes of the one before it", p.name, vaddr)
	}
	p.start = p.written
	if err := p.add(vaddr, pages, flags); err != nil {
		return err
	}
	return p.flush()
}

func (p *serverPagemap) send(run image.Run) error {
	return errors.Join(p.note(run),
		p.s.put(pagexfer.Msg{Cmd: pagexfer.AddF, Flags: uint16(run.Flags), Pages: run.Pages, Addr: run.Addr, Object: p.object}))
}

func (p *serverPagemap) Direct() (*os.File, int64, bool) { return nil, 0, false }

// Reserve is of no use without Direct.
func (p *serverPagemap) Reserve(int64) int64 { return 0 }

// Socket is the connection, for whoever can put the bytes there of the run that was added last; nil where they are encrypted.
func (p *serverPagemap) Socket() syscall.Conn {
	raw, _ := p.s.conn.(syscall.Conn) // a tls.Conn is none
	return raw
}

// Flush sends what is in the buffer.
func (p *serverPagemap) Flush() error {
	if err := p.s.w.Flush(); err != nil {
		return p.s.fail(err)
	}
	return nil
}

// Advance tells that n bytes of the run were put into Socket.
func (p *serverPagemap) Advance(n int64) { p.written += n }

func (p *serverPagemap) Write(b []byte) (int, error) {
	// The server takes what follows a message for page bytes up to the announced number and for the next message
	// after that.
	if p.written+int64(len(b)) > p.present {
		return 0, fmt.Errorf("%s: more bytes than the runs announce", p.name)
	}
	done := 0
	for done < len(b) {
		n := len(b) - done
		if p.s.tls {
			n = min(n, pagexfer.Record-int((p.written-p.start)%pagexfer.Record))
		}
		n, err := p.s.w.Write(b[done : done+n])
		if err == nil && p.s.tls {
			err = p.s.w.Flush()
		}
		done += n
		p.written += int64(n)
		if err != nil {
			return done, p.s.fail(err)
		}
	}
	return done, nil
}

// Close sends what is buffered and gives the turn to the next object. An object without pages gets its empty page
// map, as in a directory.
func (p *serverPagemap) Close() error {
	err := p.begin()
	if p.open {
		err = errors.Join(err, p.finish(p.written), p.s.w.Flush())
		if p.index != nil {
			err = errors.Join(err, p.index.Flush())
		}
		if p.indexFile != nil {
			err = errors.Join(err, p.indexFile.Close())
		}
		p.s.turn.Unlock()
		p.open = false
	}
	return err
}
