package stages

import (
	"fmt"
	"os"
	"runtime"

	"cryo/arch"
	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/internal/vma"
	"cryo/pipeline"
	"cryo/restorers"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// buildMemory gives the tasks of one level their memory: their children inherit it.
func (r *restorer) buildMemory(s *pipeline.Stage, f *family, level []*member) error {
	var live []*member
	for _, m := range level {
		if f.spaces[m.Node] != nil {
			live = append(live, m)
		}
	}
	if err := r.runAll(live, "map memory", f.emitMap); err != nil {
		return err
	}
	if err := r.runAll(live, "map shared memory", f.emitShared); err != nil {
		return err
	}
	uffds, err := r.openUffds(f, live)
	if err != nil {
		return err
	}
	drop, err := r.fill(s, f, live, uffds)
	if err != nil {
		return err
	}
	return r.runAll(live, "protect memory", func(m *member, b *remote.Builder) error {
		if u := uffds[m]; u != nil {
			b.Call(unix.SYS_CLOSE, remote.Imm(u.InTask)).Must().Discard()
		}
		for _, o := range f.shmem {
			if o.Owner == m.Node {
				o.EmitDone(b, f.layouts[m.Node])
			}
		}
		f.spaces[m.Node].EmitProtect(b, drop[m], f.late[m.Node])
		return nil
	})
}

// openUffds makes a userfaultfd for each member that has much memory to fill. Where the kernel lets it have none the memory
// is filled by writing.
func (r *restorer) openUffds(f *family, live []*member) (map[*member]*restorers.Uffd, error) {
	uffds := map[*member]*restorers.Uffd{}
	for _, m := range live {
		ranges := f.spaces[m.Node].CopyRanges(r.o.LazyPages) // of a lazy restore, what is filled faster comes late
		if len(ranges) == 0 {
			continue
		}
		b := remote.NewBuilder("userfaultfd")
		fd := restorers.EmitUffd(b)
		var res *remote.Results
		err := r.tracer.Do(func() (err error) {
			res, err = m.session.Run(b.Program())
			return err
		})
		if err != nil {
			return uffds, fmt.Errorf("%s: %w", m.Node, err)
		}
		n, err := res.Value(fd)
		if err != nil {
			continue
		}
		if uffds[m], err = restorers.OpenUffd(m.PID(), int(n), ranges); err != nil {
			return uffds, fmt.Errorf("%s: %w", m.Node, err)
		}
	}
	return uffds, nil
}

// fill writes the pages of some members, and of the shared memory they own. It returns what pages that came by fork each
// is not to have.
func (r *restorer) fill(s *pipeline.Stage, f *family, live []*member, uffds map[*member]*restorers.Uffd) (map[*member][]restorers.Range, error) {
	byMember := map[*member]*restorers.PageFill{}
	var fills []*restorers.PageFill
	shared := restorers.NewSharedPages(f.set.Source)
	defer shared.Close()
	for _, m := range live {
		byMember[m] = f.pagesOf(m.Node, f.spaces[m.Node].Base, m.PID())
		byMember[m].UseUffd(uffds[m])
		defer uffds[m].Close()
		byMember[m].Shared = shared
		byMember[m].Lazy = r.o.LazyPages
		fills = append(fills, byMember[m])
		for _, o := range f.shmem {
			if o.Owner == m.Node {
				fills = append(fills, o.Fill(f.set.Source, m.PID()))
			}
		}
	}
	g, ctx := errgroup.WithContext(s.Context())
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, fill := range fills {
		g.Go(func() error { return fill.Run(ctx) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, fill := range fills {
		r.stats.PagesRestored.Add(fill.Pages)
		r.stats.PagesCompared.Add(fill.Same)
		r.stats.PagesSkippedCOW.Add(fill.Same)
		s.Bytes(int64(fill.Pages) * image.PageSize)
	}
	drop := map[*member][]restorers.Range{}
	for m, fill := range byMember {
		drop[m] = fill.Drop
		f.late[m.Node] = fill.Late
	}
	return drop, nil
}

// emitMap changes the address space of a member from what it inherited to its own.
func (f *family) emitMap(m *member, b *remote.Builder) error {
	space := f.spaces[m.Node]
	have, err := space.SpecialNow(f.kernel)
	if m.Forker == nil {
		f.kernel, err = kernelAreas(m.PID())
		have = f.kernel
	}
	if err != nil {
		return err
	}
	if m.Forker == nil {
		b.Call(unix.SYS_CLOSE_RANGE, remote.Imm(0), remote.Imm(^uint32(0)), remote.Imm(0)).Must().Discard()
		// The tracer holds it now; a task of a set has the signal only if its image says so.
		b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_PDEATHSIG), remote.Imm(0)).Must().Discard()
	}
	putDown, err := restorers.EmitSpecial(b, have, space.Special, f.park)
	if err != nil {
		return err
	}
	if m.Forker == nil {
		b.Call(unix.SYS_MUNMAP, remote.Imm(0), remote.Imm(f.hole.Start)).Must().Discard()
		end := f.park.At + f.park.Size
		b.Call(unix.SYS_MUNMAP, remote.Imm(end), remote.Imm(restorers.TaskSize-end)).Must().Discard()
	}
	space.EmitUnmap(b)
	putDown()
	opened := map[[2]uint64]remote.Arg{}
	open := func(b *remote.Builder, id uint64, flags uint32) (remote.Arg, error) {
		key := [2]uint64{id, uint64(flags)}
		if fd, ok := opened[key]; ok {
			return fd, nil
		}
		if f.set.Files[uint32(id)].GetType() == fdinfo.FdTypes_MEMFD {
			opened[key] = f.memfds.EmitOpen(b, uint32(id), flags)
			return opened[key], nil
		}
		fd, err := f.paths.EmitOpen(b, uint32(id), flags)
		opened[key] = fd
		return fd, err
	}
	if err := space.EmitMap(b, open); err != nil {
		return err
	}
	for _, a := range space.Change.Map {
		if o := f.shmem[a.Object]; a.SharedAnon() && o.Owner == m.Node {
			o.EmitView(b, m.Node, a, "")
		}
	}
	if len(opened) > 0 { // else the program may be empty, as those of forked tasks mostly are
		b.Call(unix.SYS_CLOSE_RANGE, remote.Imm(0), remote.Imm(^uint32(0)), remote.Imm(0)).Must().Discard()
	}
	return nil
}

// emitShared makes the views of shared anonymous memory that a member does not own; owners have made theirs.
func (f *family) emitShared(m *member, b *remote.Builder) error {
	for _, a := range f.spaces[m.Node].Change.Map {
		o := f.shmem[a.Object]
		if !a.SharedAnon() || o.Owner == m.Node {
			continue
		}
		link, err := o.Link(o.Owner.Host)
		if err != nil {
			return err
		}
		o.EmitView(b, m.Node, a, link)
	}
	return nil
}

// kernelAreas lists the areas the kernel made in a fresh task.
func kernelAreas(pid int) ([]*restorers.Area, error) {
	return kernelAreasIn(pid, 0, restorers.TaskSize)
}

// ownKernelAreas lists those of the tool itself, which has many mappings besides. They lie side by side.
func ownKernelAreas() ([]*restorers.Area, error) {
	at, err := arch.OwnVDSOAddress()
	if err != nil {
		return nil, nil // nor have the tasks it makes
	}
	const near = 256 << 10
	return kernelAreasIn(os.Getpid(), at-near, at+near)
}

func kernelAreasIn(pid int, from, to uint64) ([]*restorers.Area, error) {
	maps, err := vma.Range(pid, from, to)
	if err != nil {
		return nil, err
	}
	var areas []*restorers.Area
	for _, m := range maps {
		switch m.Name {
		case "[vdso]":
			areas = append(areas, &restorers.Area{Start: m.Start, End: m.End, Status: vma.StatusVDSO})
		case "[vvar]", "[vvar_vclock]":
			areas = append(areas, &restorers.Area{Start: m.Start, End: m.End, Status: vma.StatusVVAR})
		}
	}
	return areas, nil
}
