package restorers

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"

	"cryo/arch"
	"cryo/internal/image"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sync/errgroup"
)

// Read decodes a set: the tree, each task's state and the files. Only what contradicts itself within one image or
// between two is refused here; Plan refuses the rest.
func Read(src image.Source) (*Set, error) {
	inv, err := image.ReadInventory(src)
	if err != nil {
		return nil, err
	}
	if inv.PreDumpMode != nil {
		if there, err := src.Exists(image.Pstree.File(0)); err == nil && !there {
			return nil, fmt.Errorf("%s is a pre-dump, which holds memory and no tasks: restore the dump that builds on it", src)
		}
	}
	if err := image.CheckParents(src, inv); err != nil {
		return nil, err
	}
	s := &Set{Source: src, Inventory: inv, ByPID: map[int]*Task{}, Files: map[uint32]*fdinfo.FileEntry{},
		Remaps: map[uint32]*remap_file_path.RemapFilePathEntry{}}
	// Reading is mostly decoding: everything that can be goes on at the same time.
	files := make(chan error, 1)
	go func() { files <- s.readFiles() }()
	err = s.readTasks()
	if ferr := <-files; err == nil {
		err = ferr
	}
	if err != nil {
		return nil, err
	}
	if err := s.readUserfaults(); err != nil {
		return nil, err
	}
	for _, t := range s.Tasks {
		if err := s.checkDescriptors(t); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// readTasks reads the tree and what belongs to one task.
func (s *Set) readTasks() error {
	if err := s.readTree(); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, t := range s.Tasks {
		g.Go(func() error { return s.readTask(t) })
	}
	return g.Wait()
}

func (s *Set) readFiles() error {
	file := image.Files.File(0)
	n := 0
	for e, err := range image.Entries(s.Source, image.Files, 0) {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; sets of criu before 3.3 are not read", err)
		}
		if err != nil {
			return err
		}
		if err := checkFile(e); err != nil {
			return image.Errorf(file, n, "id %d: %w", e.GetId(), err)
		}
		if other := s.Files[e.GetId()]; other != nil {
			if e = withPath(e, other); e == nil {
				return image.Errorf(file, n, "id %d is there twice", other.GetId())
			}
		}
		s.Files[e.GetId()] = e
		n++
	}
	remaps, err := image.ReadOptional(s.Source, image.RemapFpath, 0)
	if err != nil {
		return err
	}
	for i, r := range remaps {
		if s.Files[r.GetOrigId()] == nil {
			return image.Errorf(image.RemapFpath.File(0), i, "orig_id %d is no file of the set", r.GetOrigId())
		}
		s.Remaps[r.GetOrigId()] = r
	}
	all, err := image.ReadOptional(s.Source, image.Seccomp, 0)
	if err != nil {
		return err
	}
	for _, e := range all {
		s.Seccomp = append(s.Seccomp, e.GetSeccompFilters()...)
	}
	return nil
}

// withPath joins the two entries that a descriptor of /dev/net/tun has: its own and that of its path. It is nil for others.
func withPath(a, b *fdinfo.FileEntry) *fdinfo.FileEntry {
	if a.Reg != nil {
		a, b = b, a
	}
	if a.Tunf == nil || b.Reg == nil || a.Reg != nil {
		return nil
	}
	a.Reg = b.Reg
	return a
}

// checkFile checks that an entry is about one file: with one message, and the same id in it.
func checkFile(e *fdinfo.FileEntry) error {
	messages := 0
	for _, m := range [...]struct {
		there bool
		id    uint32
	}{
		{e.Reg != nil, e.Reg.GetId()}, {e.Isk != nil, e.Isk.GetId()}, {e.Nsf != nil, e.Nsf.GetId()}, {e.Psk != nil, e.Psk.GetId()},
		{e.Nlsk != nil, e.Nlsk.GetId()}, {e.Efd != nil, e.Efd.GetId()}, {e.Epfd != nil, e.Epfd.GetId()}, {e.Sgfd != nil, e.Sgfd.GetId()},
		{e.Tunf != nil, e.Tunf.GetId()}, {e.Tfd != nil, e.Tfd.GetId()}, {e.Ify != nil, e.Ify.GetId()}, {e.Ffy != nil, e.Ffy.GetId()},
		{e.Ext != nil, e.Ext.GetId()}, {e.Usk != nil, e.Usk.GetId()}, {e.Fifo != nil, e.Fifo.GetId()}, {e.Pipe != nil, e.Pipe.GetId()},
		{e.Tty != nil, e.Tty.GetId()}, {e.Memfd != nil, e.Memfd.GetId()}, {e.Bpf != nil, e.Bpf.GetId()}, {e.Pidfd != nil, e.Pidfd.GetId()},
	} {
		if !m.there {
			continue
		}
		if messages++; m.id != e.GetId() {
			return fmt.Errorf("its description has id %d", m.id)
		}
	}
	if messages > 1 {
		return fmt.Errorf("there are %d descriptions of it", messages)
	}
	return nil
}

// maxPID is the largest pid a kernel gives out.
const maxPID = 4 << 20

func (s *Set) readTree() error {
	file := image.Pstree.File(0)
	entries, err := image.ReadAll(s.Source, image.Pstree, 0)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return image.Errorf(file, -1, "there is no task")
	}
	used := map[uint32]bool{}
	for i, e := range entries {
		t, err := taskOf(e, used)
		if err != nil {
			return image.Errorf(file, i, "%w", err)
		}
		if i > 0 {
			if t.Parent = s.ByPID[t.PPID]; t.Parent == nil {
				return image.Errorf(file, i, "ppid %d of pid %d is no task before it", t.PPID, t.PID)
			}
			t.Parent.Children = append(t.Parent.Children, t)
		} else if t.PPID != 0 {
			return image.Errorf(file, i, "the first task has ppid %d where a root has 0", t.PPID)
		}
		s.Tasks = append(s.Tasks, t)
		s.ByPID[t.PID] = t
	}
	return nil
}

func taskOf(e *pstree.PstreeEntry, used map[uint32]bool) (*Task, error) {
	if e.GetPgid() > maxPID || e.GetSid() > maxPID || e.GetPpid() > maxPID {
		return nil, fmt.Errorf("pid %d: ppid %d, pgid %d or sid %d is no pid", e.GetPid(), e.GetPpid(), e.GetPgid(), e.GetSid())
	}
	t := &Task{PID: int(e.GetPid()), PPID: int(e.GetPpid()), PGID: int(e.GetPgid()), SID: int(e.GetSid())}
	tids := e.GetThreads()
	if len(tids) == 0 {
		tids = []uint32{e.GetPid()}
	}
	if len(tids) == 1 {
		tids = []uint32{e.GetPid()} // criu leaves the thread of a zombie uninitialised
	}
	if tids[0] != e.GetPid() {
		return nil, fmt.Errorf("the first thread of pid %d has tid %d", e.GetPid(), tids[0])
	}
	for _, tid := range tids {
		if tid == 0 || tid > maxPID {
			return nil, fmt.Errorf("%d is no pid", tid)
		}
		if used[tid] {
			return nil, fmt.Errorf("pid %d is there twice", tid)
		}
		used[tid] = true
		t.Threads = append(t.Threads, &Thread{TID: int(tid)})
	}
	return t, nil
}

func (s *Set) readTask(t *Task) error {
	memory := make(chan error, 1)
	go func() { memory <- s.readMM(t) }()
	err := EachThread(t, s.readThread)
	merr := <-memory
	if err != nil {
		return err
	}
	t.Core = t.Threads[0].Core
	tc := t.Core.GetTc()
	if tc == nil {
		return image.Errorf(image.Core.File(uint64(t.PID)), 0, "tc is missing: it is the image of no process")
	}
	switch st := tc.GetTaskState(); st {
	case StateDead, StateZombie:
		if len(t.Threads) > 1 || len(t.Children) > 0 {
			return image.Errorf(image.Core.File(uint64(t.PID)), 0, "task_state says dead, but the task has %d threads and %d children", len(t.Threads), len(t.Children))
		}
		t.MM = nil
		return nil
	case StateAlive, StateStopped:
		if merr != nil {
			return merr
		}
		if err := t.digest(); err != nil {
			return err
		}
	default:
		return image.Errorf(image.Core.File(uint64(t.PID)), 0, "task_state %d is not known", st)
	}
	return s.readLive(t)
}

// digest puts what is large in the images of a live task into the form it is used in: a set may have thousands of them.
func (t *Task) digest() (err error) {
	if t.Layout, err = PlanLayout(t); err != nil {
		return err
	}
	t.MM.Vmas = nil
	return EachThread(t, func(th *Thread) (err error) {
		if th.State, err = arch.TakeCore(th.Core); err != nil {
			return fmt.Errorf("image %s: thread %d: %w", image.Core.File(uint64(th.TID)), th.TID, err)
		}
		return nil
	})
}

func (s *Set) readMM(t *Task) (err error) {
	id := uint64(t.PID)
	if t.MM, err = image.Read(s.Source, image.MM, id); err != nil {
		return err
	}
	if len(t.MM.Vmas) == 0 { // before criu 2.0 they had an image of their own
		if t.MM.Vmas, err = image.ReadOptional(s.Source, image.VMAs, id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) readThread(th *Thread) error {
	c, err := image.Read(s.Source, image.Core, uint64(th.TID))
	if err != nil {
		return err
	}
	if err := checkCore(th.TID, c); err != nil {
		return err
	}
	shareDefaults(c)
	th.Core = c
	return nil
}

// manyThreads is from when on the threads of one task are worth more than one worker.
const manyThreads = 32

// EachThread does something for each thread of a task: for those of large ones, on all processors.
func EachThread(t *Task, do func(*Thread) error) error {
	var g errgroup.Group
	workers := 1
	if len(t.Threads) >= manyThreads {
		workers = runtime.GOMAXPROCS(0)
	}
	for w := range workers {
		work := func() error {
			for i := w; i < len(t.Threads); i += workers {
				if err := do(t.Threads[i]); err != nil {
					return err
				}
			}
			return nil
		}
		if workers == 1 {
			return work()
		}
		g.Go(work)
	}
	return g.Wait()
}

func (s *Set) readLive(t *Task) (err error) {
	id := uint64(t.PID)
	if t.IDs, err = image.Read(s.Source, image.IDs, id); errors.Is(err, fs.ErrNotExist) && t.Core.GetIds() != nil {
		t.IDs, err = t.Core.GetIds(), nil
	}
	if err != nil {
		return err
	}
	if t.FS, err = image.Read(s.Source, image.Fs, id); err != nil {
		return err
	}
	fdID := uint64(t.IDs.GetFilesId())
	if !s.Inventory.GetFdinfoPerId() {
		fdID = id
	}
	t.fdinfo = fdID
	if t.FDs, err = image.ReadOptional(s.Source, image.Fdinfo, fdID); err != nil {
		return err
	}
	return nil
}

var machine = map[string]criu_core.CoreEntryMarch{
	"amd64": criu_core.CoreEntry_X86_64, "arm64": criu_core.CoreEntry_AARCH64,
}

func checkCore(tid int, c *criu_core.CoreEntry) error {
	file := image.Core.File(uint64(tid))
	if c.GetMtype() != machine[runtime.GOARCH] {
		return image.Errorf(file, 0, "mtype is %s: the set comes from another kind of processor than %s", c.GetMtype(), runtime.GOARCH)
	}
	return nil
}

// checkDescriptors checks the descriptors of a task against the files of the set.
func (s *Set) checkDescriptors(t *Task) error {
	seen := map[uint32]bool{}
	for i, f := range t.FDs {
		switch {
		case f.GetFd() > math.MaxInt32-1:
			return image.Errorf(image.Fdinfo.File(t.fdinfo), i, "fd %d is no descriptor", f.GetFd())
		case seen[f.GetFd()]:
			return image.Errorf(image.Fdinfo.File(t.fdinfo), i, "fd %d is there twice", f.GetFd())
		case s.Files[f.GetId()] == nil:
			return image.Errorf(image.Fdinfo.File(t.fdinfo), i, "fd %d: id %d is no file of the set", f.GetFd(), f.GetId())
		}
		seen[f.GetFd()] = true
	}
	return nil
}

// defaultAction is what most signals of most tasks have.
var defaultAction = &criu_sa.SaEntry{Sigaction: new(uint64), Flags: new(uint64), Restorer: new(uint64), Mask: new(uint64)}

// shareDefaults keeps one message for all signals with the default action: they are half of what a task's core takes.
func shareDefaults(c *criu_core.CoreEntry) {
	sa := c.GetTc().GetSigactions()
	for i, a := range sa {
		if a.GetSigaction() == 0 && a.GetFlags() == 0 && a.GetRestorer() == 0 && a.GetMask() == 0 && !a.GetCompatSigaction() {
			sa[i] = defaultAction
		}
	}
}
