package restorers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"cryo/internal/image"
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

// pipe is what the files of one pipe have in common.
type pipe struct {
	id      uint32
	ends    [2]*pipeEnd // first reader, first writer; nil: no task has such a one
	creator *pipeEnd
	outside int       // descriptor of the tool that stands for the pipe, -1: none
	data    *contents // to be written, nil: none

	numbers [2]int // of the ends, in the creator's table, from Open to Attach
	table   *Table
}

// pipeEnd is one open file of a pipe.
type pipeEnd struct {
	*pipe
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
	common, err := Shared(p, pipeKey(pe.GetPipeId()), func() (*pipe, error) {
		c := &pipe{id: pe.GetPipeId(), outside: -1}
		if fd, ok := p.Paths.inherited(fmt.Sprintf("pipe:[%d]", c.id)); ok {
			c.outside = fd
			return c, nil
		}
		all, err := planContents(p, image.PipesData)
		c.data = all[c.id]
		return c, err
	})
	if err != nil {
		return nil, err
	}
	end := &pipeEnd{pipe: common, id: e.GetId(), flags: pe.GetFlags()}
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
		s.Made(s.Reopen(e.table.Node.ID, e.numbers[flags&unix.O_WRONLY], flags|cloexec), e.id, cloexec)
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
	fds := b.Zero(8)
	e.table = s.t
	e.numbers = s.MadePair(b.Call(unix.SYS_PIPE2, fds, remote.Imm(modes|cloexec)), ids, cloexec)
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
		b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETFL), remote.Imm(e.modes())).Must().Discard()
	}
}

// Fill writes what was in the pipe.
func (e *pipeEnd) Fill(s *Slots) error {
	if e != e.creator || e.data == nil {
		return nil
	}
	fd, err := s.GetFD(s.PID, e.numbers[1])
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return e.data.write(fd)
}

// contents says where in an image the bytes of one pipe are.
type contents struct {
	src   image.Source
	kind  image.Kind[*pipe_data.PipeDataEntry]
	index int // of the entry
	entry *pipe_data.PipeDataEntry
}

const (
	defaultPipe = 64 << 10
	maxPipe     = 1 << 31 // what the kernel takes for F_SETPIPE_SZ
)

type contentsKey string

// planContents finds the contents of all pipes or fifos of the set. Empty ones of ordinary size are left out.
func planContents(p *FilePlanner, kind image.Kind[*pipe_data.PipeDataEntry]) (map[uint32]*contents, error) {
	return Shared(p, contentsKey(kind.Name), func() (map[uint32]*contents, error) {
		all := map[uint32]*contents{}
		n := 0
		for e, err := range image.Entries(p.Set.Source, kind, 0) {
			if errors.Is(err, fs.ErrNotExist) {
				return all, nil
			}
			if err != nil {
				return nil, err
			}
			switch {
			case all[e.GetPipeId()] != nil:
				return nil, image.Errorf(kind.File(0), n, "pipe_id %d is there twice", e.GetPipeId())
			case e.GetSize() > maxPipe:
				return nil, image.Errorf(kind.File(0), n, "size %d is larger than a pipe can be", e.GetSize())
			case e.GetBytes() > max(e.GetSize(), defaultPipe):
				return nil, image.Errorf(kind.File(0), n, "%d bytes do not fit into a pipe of %d", e.GetBytes(), max(e.GetSize(), defaultPipe))
			}
			all[e.GetPipeId()] = &contents{p.Set.Source, kind, n, e}
			n++
		}
		return all, nil
	})
}

// write sets the size of the pipe behind fd and fills it.
func (c *contents) write(fd int) error {
	if err := c.resize(fd); err != nil {
		return err
	}
	if c.entry.GetBytes() == 0 {
		return nil
	}
	d, f, err := image.Open(c.src, c.kind, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for range c.index + 1 {
		if _, err := d.Next(); err != nil {
			return err
		}
	}
	// Whole pages: a pipe holds so many pages, full or not. Nobody reads from it, so what does not fit must be an error
	// and not a wait; while it polls writable, a page can be written.
	page := make([]byte, image.PageSize)
	for left := int(c.entry.GetBytes()); left > 0; {
		n := min(left, len(page))
		if _, err := io.ReadFull(d.Payload(), page[:n]); err != nil {
			return err
		}
		if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0); err != nil || ready == 0 {
			return fmt.Errorf("pipe %d is full before its %d bytes are in it", c.entry.GetPipeId(), c.entry.GetBytes())
		}
		if _, err := unix.Write(fd, page[:n]); err != nil {
			return fmt.Errorf("write to pipe %d: %w", c.entry.GetPipeId(), err)
		}
		left -= n
	}
	return nil
}

// resize gives the pipe its size. Making it larger than fs.pipe-max-size needs CAP_SYS_RESOURCE; where that is missing
// the pipe stays smaller if what is in it has room.
func (c *contents) resize(fd int) error {
	want := c.entry.GetSize()
	if want == 0 || want == defaultPipe {
		return nil
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, int(want))
	if err == nil {
		return nil
	}
	have, gerr := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if gerr == nil && uint32(have) >= c.entry.GetBytes() {
		return nil
	}
	return fmt.Errorf("pipe %d cannot be made %d bytes large (raise fs.pipe-max-size): %w", c.entry.GetPipeId(), want, err)
}
