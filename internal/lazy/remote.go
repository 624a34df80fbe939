package lazy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"cryo/internal/image"
	"cryo/internal/pagexfer"
)

// Remote is a page server that holds the late pages of all tasks: a dump that left them behind, or a server of image sets.
// The protocol is criu's: a GET for a run, and as answer an ADD_F of that run, or of its beginning, and the bytes; answers
// come in the order of the questions.
type Remote struct {
	conn net.Conn

	mu    sync.Mutex // of sending, so that the order of the queue is that of the wire
	queue chan *request
	once  sync.Once
	gone  chan struct{}
	err   error // why, once gone is closed
}

// request is a question and, when done is closed, its answer.
type request struct {
	pid  int
	addr uint64
	buf  []byte
	done chan struct{}
}

// maxAsked bounds how many questions wait for their answers.
const maxAsked = 1024

// NewRemote makes a Remote of a connection, which it takes over.
func NewRemote(conn net.Conn) *Remote {
	r := &Remote{conn: conn, queue: make(chan *request, maxAsked), gone: make(chan struct{})}
	go func() { r.fail(r.answers()) }()
	return r
}

// fail ends everything that waits. The first reason counts.
func (r *Remote) fail(err error) {
	r.once.Do(func() {
		r.err = fmt.Errorf("page server %v: %w", r.conn.RemoteAddr(), err)
		close(r.gone)
		r.conn.Close()
	})
}

// answers reads them. One that is longer than its question, or another's, ends the connection.
func (r *Remote) answers() error {
	in := bufio.NewReaderSize(r.conn, 64<<10)
	msgs := pagexfer.Reader{R: in}
	for {
		var q *request
		select {
		case q = <-r.queue:
		case <-r.gone:
			return nil
		}
		m, err := msgs.Read()
		if errors.Is(err, io.EOF) {
			err = errors.New("the connection has ended")
		}
		if err != nil {
			return err
		}
		if m.Cmd != pagexfer.AddF || m.Object != uint64(q.pid) || m.Addr != q.addr || m.Pages == 0 || m.Pages > uint64(len(q.buf))/pageSize {
			return fmt.Errorf("it was asked for %d pages at %x of task %d and sends %d at %x of %d (command %d)",
				len(q.buf)/pageSize, q.addr, q.pid, m.Pages, m.Addr, m.Object, m.Cmd)
		}
		q.buf = q.buf[:m.Pages*pageSize]
		if _, err := io.ReadFull(in, q.buf); err != nil {
			return err
		}
		close(q.done)
	}
}

// get asks for a run and waits for what comes.
func (r *Remote) get(q *request) error {
	m := pagexfer.Msg{Cmd: pagexfer.Get, Pages: uint64(len(q.buf)) / pageSize, Addr: q.addr, Object: uint64(q.pid)}
	r.mu.Lock()
	select {
	case r.queue <- q:
	case <-r.gone:
		r.mu.Unlock()
		return r.err
	}
	_, err := r.conn.Write(m.Append(nil))
	r.mu.Unlock()
	if err != nil {
		r.fail(err)
	}
	select {
	case <-q.done:
		return nil
	case <-r.gone:
		return r.err
	}
}

// Close says goodbye: a server that has nobody else to serve ends, and so does a dump that was waiting for that.
func (r *Remote) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.gone:
		return nil
	default:
	}
	_, err := r.conn.Write(pagexfer.Msg{Cmd: pagexfer.Close}.Append(nil))
	if err == nil {
		// The reader waits for a question, so the answer is read here.
		var status [4]byte
		if _, err = io.ReadFull(r.conn, status[:]); err == nil && binary.LittleEndian.Uint32(status[:]) != 0 {
			err = fmt.Errorf("it ends with status %d", int32(binary.LittleEndian.Uint32(status[:])))
		}
	}
	r.fail(errors.New("closed"))
	if err != nil {
		return fmt.Errorf("page server %v: %w", r.conn.RemoteAddr(), err)
	}
	return nil
}

// remotePages are the late pages of one task.
type remotePages struct {
	remote *Remote
	pid    int
	late   []Range
}

// Open reads from an image set which pages of a task come late; src has its page map.
func (r *Remote) Open(src image.Source, pid int) (Pages, error) {
	m, err := image.ReadPagemap(src, image.TaskPages, uint64(pid))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	p := &remotePages{remote: r, pid: pid}
	for run, err := range m.Runs() {
		if err != nil {
			return nil, err
		}
		if run.Flags&image.PELazy == 0 {
			continue
		}
		if n := len(p.late); n > 0 && p.late[n-1].End == run.Addr {
			p.late[n-1].End = run.End()
			continue
		}
		p.late = append(p.late, Range{run.Addr, run.End()})
	}
	return p, nil
}

func (p *remotePages) Late() []Range { return p.late }

func (p *remotePages) Fetch(addr, n uint64, deliver Deliver) error {
	for n > 0 {
		q := &request{pid: p.pid, addr: addr, buf: make([]byte, n), done: make(chan struct{})}
		if err := p.remote.get(q); err != nil {
			return err
		}
		if err := deliver(addr, q.buf); err != nil {
			return err
		}
		addr, n = addr+uint64(len(q.buf)), n-uint64(len(q.buf))
	}
	return nil
}

func (p *remotePages) Close() error { return nil }

// ServeGets answers the questions of a Remote, or of criu's lazy-pages daemon, until it says goodbye. open opens the pages
// of a task, once a task; they are closed at the end.
func ServeGets(conn net.Conn, open func(pid int) (Pages, error)) (served uint64, err error) {
	tasks := map[uint64]Pages{}
	defer func() {
		for _, p := range tasks {
			p.Close()
		}
	}()
	in := pagexfer.Reader{R: bufio.NewReader(conn)}
	out := bufio.NewWriterSize(conn, 256<<10)
	for {
		m, err := in.Read()
		if errors.Is(err, io.EOF) {
			return served, errors.New("the client went away without a goodbye")
		}
		if err != nil {
			return served, err
		}
		switch m.Cmd {
		case pagexfer.Close, pagexfer.ForceClose:
			_, err := conn.Write(make([]byte, 4))
			return served, err
		case pagexfer.Get:
		default:
			return served, fmt.Errorf("command %d is not one of lazy pages", m.Cmd)
		}
		if m.Pages == 0 || m.Pages > maxGet {
			return served, fmt.Errorf("%d pages are too many, or none", m.Pages)
		}
		p := tasks[m.Object]
		if p == nil {
			if m.Object > 1<<22 { // PID_MAX_LIMIT
				return served, fmt.Errorf("%d is no task", m.Object)
			}
			if p, err = open(int(m.Object)); err != nil {
				return served, fmt.Errorf("task %d: %w", m.Object, err)
			}
			tasks[m.Object] = p
		}
		head := m
		head.Cmd, head.Flags = pagexfer.AddF, uint16(image.PEPresent)
		if _, err := out.Write(head.Append(nil)); err != nil {
			return served, err
		}
		err = p.Fetch(m.Addr, m.Pages*pageSize, func(_ uint64, b []byte) error {
			_, err := out.Write(b)
			return err
		})
		if err == nil {
			err = out.Flush()
		}
		if err != nil {
			return served, fmt.Errorf("task %d: %w", m.Object, err)
		}
		served += m.Pages
	}
}

// maxGet bounds a question, in pages: criu asks for 4 MiB at most.
const maxGet = 64 << 20 / pageSize
