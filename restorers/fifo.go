package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// Fifo restores named pipes. Each open file is opened by its name, while another one for both directions is held so
// that no open waits for a peer and nothing written is lost; contents are written through that.
type Fifo struct{}

type fifoFile struct {
	*Named
	id     uint32
	number int // of the descriptor for both directions, from Open to Attach
	table  *Table
}

// Plan finds the file behind the fifo.
func (Fifo) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	fe := e.GetFifo()
	if fe == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no fifo", e.GetId())
	}
	reg := fe.GetRegfId()
	if fe.RegfId == nil {
		reg = fe.GetId() // as it was before criu 2.1
	}
	n, err := p.Paths.Get(reg)
	if err != nil {
		return nil, err
	}
	if n.found != nil && n.found.st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, fmt.Errorf("file %s has changed: it was a fifo, it is %s", n.Entry.GetName(), typeName(n.found.st.Mode))
	}
	f := &fifoFile{Named: n, id: e.GetId()}
	data, err := planContents(p, image.FifoData)
	if err == nil && data.to[fe.GetPipeId()] == nil {
		data.to[fe.GetPipeId()] = func() (*Table, int) { return f.table, f.number }
	}
	return f, err
}

// Needs is nothing.
func (f *fifoFile) Needs() []uint32 { return nil }

// Parks counts the descriptor for both directions.
func (f *fifoFile) Parks(*Table) int { return 1 }

func (f *fifoFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	f.table, f.number = s.t, s.Keep(f.emit(s.pool, unix.O_RDWR|unix.O_CLOEXEC))
	cloexec := s.Cloexec(f.id)
	s.Made(f.emit(s.pool, openFlags(f.Entry.GetFlags())|cloexec), f.id, cloexec)
	return nil
}
