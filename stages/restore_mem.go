package stages

import (
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// restoreMem sets what belongs to an address space and is not handed on by a fork, and what a task says of files without
// a descriptor. No task forks any more.
func (r *restorer) restoreMem(s *pipeline.Stage, f *family) (*family, error) {
	live := f.alive()
	fsDone := map[uint32]bool{}
	err := r.runAll(live, "finish memory", func(m *member, b *remote.Builder) error {
		if !sharesMemory(m.Node) {
			if err := r.emitMemory(f, m, b); err != nil {
				return err
			}
		}
		if id := m.IDs.GetFsId(); !fsDone[id] {
			fsDone[id] = true
			return restorers.EmitFS(b, m.FS, f.paths)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The working directory may be that of a dead process.
	if err := r.endHelpers(f); err != nil {
		return nil, err
	}
	if err := f.memfds.Seal(); err != nil {
		return nil, err
	}
	if err := f.sysv.Finish(); err != nil {
		return nil, err
	}
	f.paths.Close() // no file is opened any more
	return f, nil
}

// emitMemory sets what belongs to one address space.
func (r *restorer) emitMemory(f *family, m *member, b *remote.Builder) error {
	if err := f.files.EmitRings(restorers.Attach, b, m.Node, f.layouts[m.Node], m.PID()); err != nil {
		return err
	}
	if err := restorers.EmitAIO(b, m.MM.GetAios(), m.PID()); err != nil {
		return err
	}
	f.files.EmitUnmapped(b, m.Node)
	f.spaces[m.Node].EmitAdvice(b)
	exe, err := f.paths.EmitOpen(b, m.MM.GetExeFileId(), unix.O_RDONLY)
	if err != nil {
		return err
	}
	restorers.EmitMM(b, m.MM, exe, r.o.LazyPages)
	b.Call(unix.SYS_CLOSE, exe).Must().Discard()
	return nil
}
