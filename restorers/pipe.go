package restorers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cryo/internal/image"
	"cryo/internal/poll"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"golang.org/x/sys/unix"
)

// Pipe restores the ends of pipes.
//
// The task that owns the first file of a pipe makes the pipe. Its two ends are the first reader and the first writer of
// the set, whoever has them; further open files on the pipe, and those for reading and writing, are opened anew through
// /proc from one of the ends. Contents are written by the tool.
type Pipe struct{}

// pipeObject is what the files of one pipe have in common.
type pipeObject struct {
	id      uint32
	ends    [2]*pipeEnd // first reader, first writer; nil: no task has such a one
	creator *pipeEnd
	outside int    // descriptor of the tool that stands for the pipe, -1: none
	numbers [2]int // of the ends, in the creator's table, from Open to Attach
	table   *Table
}

// pipeEnd is one open file of a pipe.
type pipeEnd struct {
	*pipeObject
	id    uint32
	flags uint32
}

type pipeKey uint32

// Plan joins the files of a pipe.
func (Pipe) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	pe := e.GetPipe()
	if pe == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no pipe", e.GetId())
	}
	common, err := Shared(p, pipeKey(pe.GetPipeId()), func() (*pipeObject, error) {
		c := &pipeObject{id: pe.GetPipeId(), outside: -1}
		if fd, ok := p.Paths.inherited(fmt.Sprintf("pipe:[%d]", c.id)); ok {
			c.outside = fd
			return c, nil
		}
		data, err := planContents(p, image.PipesData)
		if err == nil {
			data.to[c.id] = func() (*Table, int) { return c.table, c.numbers[1] }
		}
		return c, err
	})
	if err != nil {
		return nil, err
	}
	end := &pipeEnd{pipeObject: common, id: e.GetId(), flags: pe.GetFlags()}
	if common.creator == nil {
		common.creator = end
	}
	if which := pe.GetFlags() & unix.O_ACCMODE; which <= unix.O_WRONLY && common.ends[which] == nil {
		common.ends[which] = end
	}
	return end, nil
}

// Needs is nothing.
func (e *pipeEnd) Needs() []uint32 { return nil }

// Parks counts the ends that the creator makes for others, or for nobody.
func (e *pipeEnd) Parks(t *Table) int {
	n := 0
	for _, end := range e.ends {
		if e == e.creator && e.outside < 0 && (end == nil || t.first(end.id) < 0) {
			n++
		}
	}
	return n
}

func (e *pipeEnd) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch {
	case lv == Open && e.outside >= 0:
		cloexec := s.Cloexec(e.id)
		s.Made(s.Reopen(s.plan.tool, e.outside, int(e.flags&(unix.O_ACCMODE|unix.O_NONBLOCK))|cloexec), e.id, cloexec)
	case lv == Open && e == e.creator:
		e.create(b, s)
	case lv == Pair && e.outside < 0 && e.ends[0] != e && e.ends[1] != e:
		cloexec := s.Cloexec(e.id)
		flags := int(e.flags & (unix.O_ACCMODE | unix.O_NONBLOCK))
		s.Made(s.Reopen(e.table.Node.Host, e.numbers[flags&unix.O_WRONLY], flags|cloexec), e.id, cloexec)
		e.setModes(b, s.Number(e.id), flags&unix.O_NONBLOCK)
	}
	return nil
}

// create makes the pipe.
func (e *pipeEnd) create(b *remote.Builder, s *Slots) {
	var ids [2]uint32
	modes, cloexec := 0, unix.O_CLOEXEC
	for i, end := range e.ends {
		if end != nil {
			ids[i], modes = end.id, end.modes() // of the writer, if there is one: O_DIRECT goes to it alone
			cloexec = s.Cloexec(end.id)
		}
	}
	e.table = s.t
	e.numbers = s.MadePair(b.Call(unix.SYS_PIPE2, s.twoNumbers(), remote.Imm(modes|cloexec)), ids, cloexec)
	for i, have := range [2]int{modes &^ unix.O_DIRECT, modes} {
		if end := e.ends[i]; end != nil {
			end.setModes(b, e.numbers[i], have)
		}
	}
}

// modes are the flags of an end that can be changed.
func (e *pipeEnd) modes() int { return int(e.flags) & (unix.O_NONBLOCK | unix.O_DIRECT) }

func (e *pipeEnd) setModes(b *remote.Builder, fd, have int) {
	if have != e.modes() {
		b.CallNumbers(unix.SYS_FCNTL, uint64(fd), unix.F_SETFL, uint64(e.modes())).Must().Discard()
	}
}

// contents are what the pipes or fifos of a set hold.
type contents struct {
	src     image.Source
	kind    image.Kind[*pipe_data.PipeDataEntry]
	entries map[uint32]bool
	to      map[uint32]func() (t *Table, fd int) // where a writing end is, by pipe
}

const (
	defaultPipe = 64 << 10
	maxPipe     = 1 << 31 // what the kernel takes for F_SETPIPE_SZ
)

type contentsKey string

// planContents checks the image of contents. It is read once more when the pipes are there: bytes are not kept.
func planContents(p *FilePlanner, kind image.Kind[*pipe_data.PipeDataEntry]) (*contents, error) {
	return Shared(p, contentsKey(kind.Name), func() (*contents, error) {
		c := &contents{p.Set.Source, kind, map[uint32]bool{}, map[uint32]func() (*Table, int){}}
		for e, err := range image.Entries(p.Set.Source, kind, 0) {
			if errors.Is(err, fs.ErrNotExist) {
				return c, nil
			}
			if err != nil {
				return nil, err
			}
			switch n := len(c.entries); {
			case c.entries[e.GetPipeId()]:
				return nil, image.Errorf(kind.File(0), n, "pipe_id %d is there twice", e.GetPipeId())
			case e.GetSize() > maxPipe:
				return nil, image.Errorf(kind.File(0), n, "size %d is larger than a pipe can be", e.GetSize())
			case e.GetBytes() > max(e.GetSize(), defaultPipe):
				return nil, image.Errorf(kind.File(0), n, "%d bytes do not fit into a pipe of %d", e.GetBytes(), max(e.GetSize(), defaultPipe))
			}
			if _, err := image.PipePackets(e); err != nil {
				return nil, image.Errorf(kind.File(0), len(c.entries), "%w", err)
			}
			c.entries[e.GetPipeId()] = true
		}
		p.plan.after(Fill, c)
		return c, nil
	})
}

// fill writes the contents of all pipes in one pass over the image.
func (c *contents) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	d, f, err := image.Open(c.src, c.kind, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page := make([]byte, image.PageSize)
	e := &pipe_data.PipeDataEntry{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.NextInto(e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		at := c.to[e.GetPipeId()]
		if at == nil || e.GetBytes() == 0 && (e.GetSize() == 0 || e.GetSize() == defaultPipe) {
			continue // of a pipe that comes from outside, or nothing to do
		}
		t, number := at()
		if t == nil {
			continue
		}
		fd, err := open(t, number)
		if err == nil {
			err = errors.Join(fillPipe(fd, e, d.Payload(), page), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("%s: pipe %d: %w", t.Node, e.GetPipeId(), err)
		}
	}
}

// fillPipe sets the size of the pipe behind fd and writes what was in it: in whole pages, for a pipe holds so many of
// them, full or not, or packet by packet. Nobody reads from it, so what does not fit must be an error and not a wait.
func fillPipe(fd int, e *pipe_data.PipeDataEntry, from io.Reader, page []byte) error {
	if err := resizePipe(fd, e); err != nil {
		return err
	}
	packets, err := image.PipePackets(e)
	if err != nil {
		return err
	}
	if len(packets) > 0 {
		back, err := packetMode(fd)
		if err != nil {
			return err
		}
		defer back()
	}
	for done, size := 0, int(e.GetBytes()); done < size; {
		n := min(size-done, len(page))
		if len(packets) > 0 {
			n, packets = min(n, packets[0]), packets[1:]
		}
		if _, err := io.ReadFull(from, page[:n]); err != nil {
			return err
		}
		if done > 0 { // while it polls writable there is room for a page
			if ready, err := poll.Now(fd, unix.POLLOUT); err != nil || ready == 0 {
				return fmt.Errorf("it is full with %d of %d bytes", done, size)
			}
		}
		if _, err := unix.Write(fd, page[:n]); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		done += n
	}
	return nil
}

// packetMode makes each write to a pipe a packet, until back is called: the end in packet mode may be gone, its packets
// are not.
func packetMode(fd int) (back func(), err error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT != 0 {
		return func() {}, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_DIRECT)
	return func() { unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags) }, err
}

// resizePipe gives the pipe its size. Making it larger than fs.pipe-max-size needs CAP_SYS_RESOURCE; where that is
// missing the pipe stays smaller if what was in it has room.
func resizePipe(fd int, e *pipe_data.PipeDataEntry) error {
	want := e.GetSize()
	if want == 0 || want == defaultPipe {
		return nil
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, int(want))
	if err == nil {
		return nil
	}
	have, gerr := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if gerr == nil && uint32(have) >= e.GetBytes() {
		return nil
	}
	return fmt.Errorf("it cannot be made %d bytes large (raise fs.pipe-max-size): %w", want, err)
}
