package sinks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"cryo/internal/image"
	"cryo/internal/pagexfer"
)

// ServerPagesBase is where a page server starts to number pages files, so that they can be put into the directory
// of the dump beside its own.
const ServerPagesBase = 0x10001

// ServePages receives the pages of one dump from conn and stores them in dir, which the caller made with
// PagesOnly and closes. It speaks criu's protocol, with peers of criu 4.2 and of what came before. When the client
// breaks off or says anything wrong, all that was received is removed. It returns the number of bytes stored.
func ServePages(conn net.Conn, dir *Dir) (int64, error) {
	s := &session{conn: conn, dir: dir, msgs: pagexfer.Reader{R: conn}}
	err := s.serve()
	if s.open != nil {
		err = errors.Join(err, s.open.Close())
	}
	if err != nil {
		return s.bytes, errors.Join(fmt.Errorf("page server: %s: %w", conn.RemoteAddr(), err), dir.Abort())
	}
	return s.bytes, s.answer(0)
}

// session is one connection.
type session struct {
	conn   net.Conn
	dir    *Dir
	msgs   pagexfer.Reader
	open   Pagemap // nil: none
	object uint64  // which one that is
	bytes  int64
}

// serve handles messages up to Close, whose answer is left to the caller: it says that all is well.
func (s *session) serve() error {
	read := s.msgs.ReadFirst
	for {
		m, err := read()
		if errors.Is(err, io.EOF) {
			return errors.New("the client went away before it had sent everything")
		}
		if err != nil {
			return err
		}
		read = s.msgs.Read
		switch m.Cmd {
		case pagexfer.Close, pagexfer.ForceClose:
			return nil
		case pagexfer.Open, pagexfer.Open2:
			err = s.begin(m)
		case pagexfer.Parent:
			err = s.parent(m)
		case pagexfer.AddF:
			err = s.add(m, uint32(m.Flags))
		case pagexfer.AddPacked:
			err = s.addPacked(m)
		case pagexfer.Add:
			err = s.add(m, image.PEPresent)
		case pagexfer.Hole:
			err = s.add(m, image.PEParent)
		default:
			err = fmt.Errorf("unknown command %d", m.Cmd)
		}
		if err != nil {
			return err
		}
	}
}

// begin closes the object that was open and opens another.
func (s *session) begin(m pagexfer.Msg) error {
	kind, id, err := pagexfer.ParseObject(m.Object)
	if err != nil {
		return err
	}
	if s.open != nil {
		if err := s.open.Close(); err != nil {
			return err
		}
	}
	if s.open, err = s.dir.Pagemap(kind, id); err != nil {
		return err
	}
	s.object = m.Object
	if m.Cmd != pagexfer.Open2 {
		return nil
	}
	has, err := s.open.HasParent()
	if err != nil {
		return err
	}
	answer := boolByte(has)
	if m.Pages == pagexfer.AskPacked {
		answer |= pagexfer.TakesPacked
	}
	_, err = s.conn.Write([]byte{answer})
	return err
}

func (s *session) parent(m pagexfer.Msg) error {
	kind, id, err := pagexfer.ParseObject(m.Object)
	if err != nil {
		return err
	}
	previous, err := s.dir.previous()
	if err != nil {
		return err
	}
	runs, err := openParentRuns(previous, kind, id)
	if err != nil {
		return err
	}
	if runs != nil {
		runs.Close()
	}
	return s.answer(uint32(boolByte(runs != nil)))
}

// add stores a run and its bytes, which the kernel moves from the socket to the file.
func (s *session) add(m pagexfer.Msg, flags uint32) error {
	if s.open == nil || s.object != m.Object {
		if err := s.begin(pagexfer.Msg{Cmd: pagexfer.Open, Object: m.Object}); err != nil {
			return err
		}
	}
	if err := s.open.Add(m.Addr, m.Pages, flags); err != nil || flags&image.PEPresent == 0 {
		return err
	}
	size := int64(m.Pages) * image.PageSize
	f, off, _ := s.open.Direct()
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return err
	}
	n, err := io.CopyN(f, s.conn, size)
	s.open.Advance(n)
	s.bytes += n
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the client went away with %d bytes missing", size-n)
	}
	return err
}

// addPacked stores a run that comes in compressed blocks, as they are.
func (s *session) addPacked(m pagexfer.Msg) error {
	to, ok := s.open.(*dirPagemap)
	if !ok || s.object != m.Object {
		return errors.New("compressed pages of an object that is not open")
	}
	var how [8]byte
	if _, err := io.ReadFull(s.conn, how[:]); err != nil {
		return err
	}
	run := image.Run{Addr: m.Addr, Pages: m.Pages, Flags: uint32(m.Flags)}
	blocks := image.Blocks{Codec: image.Codec(binary.LittleEndian.Uint32(how[0:])), Pages: uint64(binary.LittleEndian.Uint32(how[4:]))}
	switch {
	case run.Flags&image.PEPresent == 0 || run.Pages == 0 || run.Pages > pagexfer.MaxPacked:
		return fmt.Errorf("%d compressed pages at %#x with flags %#x", run.Pages, run.Addr, run.Flags)
	case blocks.Pages == 0 || blocks.Pages*image.PageSize > image.MaxBlock:
		return fmt.Errorf("blocks of %d pages", blocks.Pages)
	case blocks.Codec != image.LZ4 && blocks.Codec != image.Zstd:
		return fmt.Errorf("pages are compressed in way %d, which this version does not know", blocks.Codec)
	}
	f, off, _ := to.Direct()
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return err
	}
	for left := run.Pages; left > 0; {
		pages := min(left, blocks.Pages)
		left -= pages
		var b [4]byte
		if _, err := io.ReadFull(s.conn, b[:]); err != nil {
			return err
		}
		size := binary.LittleEndian.Uint32(b[:])
		if uint64(size) > pages*image.PageSize {
			return fmt.Errorf("a block of %d pages has %d bytes", pages, size)
		}
		blocks.Sizes = append(blocks.Sizes, size)
		if n, err := io.CopyN(f, s.conn, int64(size)); err != nil {
			return fmt.Errorf("the client went away with %d bytes of a block missing: %w", int64(size)-n, err)
		}
		to.Advance(int64(size))
		s.bytes += int64(size)
	}
	return to.addPacked(run, blocks)
}

func (s *session) answer(v uint32) error {
	_, err := s.conn.Write(binary.LittleEndian.AppendUint32(nil, v))
	return err
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
