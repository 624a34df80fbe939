package restorers

import (
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"golang.org/x/sys/unix"
)

// Pipe restores the ends of pipes.
type Pipe struct{}

// Plan joins the ends of a pipe into one object.
func (Pipe) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	pe := e.GetPipe()
	if pe == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no pipe", e.GetId())
	}
	type key struct{ pipe uint32 }
	o := p.Shared(key{pe.GetPipeId()}, func() Object { return &pipeObject{id: pe.GetPipeId(), set: p.Set} }).(*pipeObject)
	end := 0
	switch pe.GetFlags() & unix.O_ACCMODE {
	case unix.O_RDONLY:
	case unix.O_WRONLY:
		end = 1
	default:
		end = -1 // opened anew through /proc, for both
	}
	if end >= 0 && o.ends[end] == 0 {
		o.ends[end], o.flags[end] = e.GetId(), pe.GetFlags()
	} else {
		o.more = append(o.more, reopened{e.GetId(), pe.GetFlags()})
	}
	return o, nil
}

type pipeObject struct {
	id    uint32
	set   *Set
	ends  [2]uint32 // file ids of the reading and the writing end; 0: nobody has it
	flags [2]uint32
	more  []reopened
	kept  [2]int // descriptors of the ends in the owner's table
}

// reopened is a further file on a pipe, from open("/proc/self/fd/N").
type reopened struct{ id, flags uint32 }

func (o *pipeObject) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch lv {
	case Open:
		o.create(b, s)
	case Pair:
		for _, m := range o.more {
			name := fmt.Sprintf("/proc/self/fd/%d", o.kept[0])
			fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(name), remote.Imm(openFlags(m.flags)), remote.Imm(0)).Must()
			s.Place(b, m.id, fd)
		}
	}
	return nil
}

// create makes the pipe and moves both ends to their homes; an end that nobody has, to a number for the time being.
func (o *pipeObject) create(b *remote.Builder, s *Slots) {
	for i, id := range o.ends {
		if id != 0 {
			o.kept[i] = s.Home(id)
		} else {
			o.kept[i] = s.Table.Temp()
		}
	}
	const modes = unix.O_NONBLOCK | unix.O_DIRECT
	common := o.flags[0] & o.flags[1]
	if o.ends[0] == 0 || o.ends[1] == 0 {
		common = o.flags[0] | o.flags[1]
	}
	fds := b.Zero(8)
	b.Call(unix.SYS_PIPE2, fds, remote.Imm(common&modes|unix.O_CLOEXEC)).Must().Discard()
	// Moving the reading end must not hit the writing one.
	clear := b.NewLabel()
	w := b.Load32(fds.At(4))
	b.JumpIf(w, remote.Ne, remote.Imm(o.kept[0]), clear)
	b.Store32(fds.At(4), b.Call(unix.SYS_FCNTL, w, remote.Imm(unix.F_DUPFD_CLOEXEC), remote.Imm(o.kept[0]+1)).Must())
	b.Call(unix.SYS_CLOSE, w).Must().Discard()
	b.Label(clear)
	for i, id := range o.ends {
		fd := b.Load32(fds.At(4 * i))
		if id == 0 {
			place(b, fd, o.kept[i], unix.O_CLOEXEC)
			continue
		}
		s.Place(b, id, fd)
		if rest := o.flags[i] &^ common & modes; rest != 0 {
			b.Call(unix.SYS_FCNTL, remote.Imm(o.kept[i]), remote.Imm(unix.F_SETFL), remote.Imm(o.flags[i]&modes)).Must().Discard()
		}
	}
}

// Fill sets the size of the pipe and writes back what was in it, packet by packet in packet mode as far as the image
// tells them apart.
func (o *pipeObject) Fill(s *Slots) error {
	data, err := o.set.PipeData(o.id)
	if err != nil || data == nil {
		return err
	}
	return data.write(s.PID, o.kept[1])
}

// pipeData is what was in a pipe.
type pipeData struct {
	size  uint32
	bytes []byte
}

// maxPipe bounds a pipe: more than any kernel gives out (the kernel's own limit is below 2 GiB).
const maxPipe = 1 << 30

// PipeData returns what was in the pipe with this id; nil when the set says nothing about it.
func (s *Set) PipeData(id uint32) (*pipeData, error) {
	return s.pipes.get(s.Source, image.PipesData, id)
}

// FifoData returns what was in the fifo with this id; nil when the set says nothing about it.
func (s *Set) FifoData(id uint32) (*pipeData, error) {
	return s.fifos.get(s.Source, image.FifoData, id)
}

// pipeStore is the contents of all pipes, read once.
type pipeStore struct {
	read bool
	all  map[uint32]*pipeData
}

func (p *pipeStore) get(src image.Source, kind image.Kind[*pipe_data.PipeDataEntry], id uint32) (*pipeData, error) {
	if !p.read {
		if err := p.load(src, kind); err != nil {
			return nil, err
		}
	}
	return p.all[id], nil
}

func (p *pipeStore) load(src image.Source, kind image.Kind[*pipe_data.PipeDataEntry]) error {
	p.read, p.all = true, map[uint32]*pipeData{}
	d, f, err := image.Open(src, kind, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		m, err := d.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		e := m.(*pipe_data.PipeDataEntry)
		bytes, err := d.PayloadBytes(maxPipe)
		if err != nil {
			return err
		}
		p.all[e.GetPipeId()] = &pipeData{e.GetSize(), bytes}
	}
}

// write puts the data into the pipe behind a descriptor of a task.
func (d *pipeData) write(pid, fd int) error {
	name := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	w, err := unix.Open(name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a pipe to fill it: %w", err)
	}
	defer unix.Close(w)
	if d.size != 0 {
		if _, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, int(d.size)); err != nil {
			return fmt.Errorf("set the size of a pipe to %d bytes: %w", d.size, err)
		}
	}
	for rest := d.bytes; len(rest) > 0; {
		n, err := unix.Write(w, rest)
		if err != nil {
			return fmt.Errorf("write %d bytes back into a pipe: %w", len(rest), err)
		}
		rest = rest[n:]
	}
	return nil
}
