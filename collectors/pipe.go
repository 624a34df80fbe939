package collectors

import (
	"bytes"
	"errors"
	"fmt"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Pipe collects the ends of pipes; both have the pipe's inode number as pipe_id.
type Pipe struct{}

// Match takes what pipe(2) makes.
func (Pipe) Match(p *Probe) bool { return p.mode() == unix.S_IFIFO && p.FSType == unix.PIPEFS_MAGIC }

// Collect makes a pipe_entry and stores what is in the pipe. O_DIRECT, packet mode, is kept
// in the flags, and where the packets end in the contents.
func (Pipe) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	if len(f.env.Options.External) > 0 && f.env.External(fmt.Sprintf("pipe:[%d]", p.Stat.Ino)) {
		// Its other side stays outside: the restore gets a descriptor for it by --inherit-fd.
		return &fdinfo.FileEntry{Pipe: pipeEntry(p, id)}, nil
	}
	if err := f.pipeContents(p, &f.pipesData, image.PipesData); err != nil {
		return nil, err
	}
	return &fdinfo.FileEntry{Pipe: pipeEntry(p, id)}, nil
}

func pipeEntry(p *Probe, id uint32) *pipe.PipeEntry {
	return &pipe.PipeEntry{Id: proto.Uint32(id), PipeId: proto.Uint32(uint32(p.Stat.Ino)), Flags: proto.Uint32(p.Flags), Fown: p.Owner}
}

// Fifo collects named pipes: an entry of its own and one for the path.
type Fifo struct{}

// Match takes what mkfifo(3) made, unless it is only a handle.
func (Fifo) Match(p *Probe) bool {
	return p.mode() == unix.S_IFIFO && p.FSType != unix.PIPEFS_MAGIC && p.Flags&unix.O_PATH == 0
}

// Collect makes a fifo_entry with a reg_file_entry before it, and stores what is in the pipe.
func (Fifo) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	regID := f.FreshID()
	reg, err := f.regular(p, regID)
	if err != nil {
		return nil, err
	}
	if err := f.pipeContents(p, &f.fifoData, image.FifoData); err != nil {
		return nil, err
	}
	f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(regID), Reg: reg})
	return &fdinfo.FileEntry{Fifo: &fifo.FifoEntry{
		Id: proto.Uint32(id), PipeId: proto.Uint32(uint32(p.Stat.Ino)), RegfId: proto.Uint32(regID),
	}}, nil
}

// pipeContents stores a pipe's size and the bytes in it, once a pipe, from whichever end that can read is met first.
// The bytes are copied by tee(2), which leaves them where they are.
func (f *Files) pipeContents(p *Probe, out **image.Output[*pipe_data.PipeDataEntry], kind image.Kind[*pipe_data.PipeDataEntry]) error {
	key := p.Stat.Ino
	if p.Flags&unix.O_ACCMODE == unix.O_WRONLY || f.pipes[key] {
		return nil
	}
	f.pipes[key] = true
	fd, err := p.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return fmt.Errorf("size of a pipe: %w", err)
	}
	data, packets, err := f.peekPipe(fd, size)
	if err != nil {
		return err
	}
	if *out == nil {
		if *out, err = image.Create(f.env.Images, kind, 0); err != nil {
			return err
		}
	}
	e := &pipe_data.PipeDataEntry{PipeId: proto.Uint32(uint32(p.Stat.Ino)), Bytes: proto.Uint32(uint32(len(data))), Size: proto.Uint32(uint32(size))}
	if len(packets) > 1 {
		image.SetPipePackets(e, packets)
	}
	if err := (*out).Entry(e); err != nil || len(data) == 0 {
		return err
	}
	return (*out).Payload(bytes.NewReader(data))
}

// defaultPipe is the size a pipe has that nobody changed.
const defaultPipe = 64 << 10

// peekPipe returns what is in a pipe, and leaves it there: it is duplicated by tee(2) into a pipe of the tool's own. The
// copy is valid until the next call. In packet mode each read gives one packet; packets has what each read gave.
func (f *Files) peekPipe(fd, size int) (data []byte, packets []int, err error) {
	if queued, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil && queued == 0 {
		return nil, nil, nil
	}
	own, err := f.ownPipe(size)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.Tee(fd, own[1], size, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) || n == 0 {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("tee: %w", err)
	}
	if int64(cap(f.pipeBuf)) < n {
		f.pipeBuf = make([]byte, max(n, defaultPipe))
	}
	data = f.pipeBuf[:n]
	for got := 0; got < len(data); {
		m, err := unix.Read(own[0], data[got:])
		if err != nil || m == 0 {
			return nil, nil, fmt.Errorf("read the copy of a pipe: %d of %d bytes: %w", got, n, err)
		}
		packets = append(packets, m)
		got += m
	}
	return data, packets, nil
}

// ownPipe is an empty pipe of the tool's own, of at least a size. After an error that leaves something in it the dump ends.
func (f *Files) ownPipe(size int) ([2]int, error) {
	if f.peekSize == 0 {
		if err := unix.Pipe2(f.peek[:], unix.O_CLOEXEC); err != nil {
			return f.peek, fmt.Errorf("make a pipe: %w", err)
		}
		f.peekSize = defaultPipe
	}
	if size > f.peekSize {
		grown, err := unix.FcntlInt(uintptr(f.peek[1]), unix.F_SETPIPE_SZ, size)
		if err != nil {
			return f.peek, fmt.Errorf("make a pipe of %d bytes: %w", size, err)
		}
		f.peekSize = grown
	}
	return f.peek, nil
}

func (f *Files) closeOwnPipe() {
	if f.peekSize != 0 {
		closeAll(f.peek[:])
		f.peekSize = 0
	}
}
