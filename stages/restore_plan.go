package stages

import (
	"fmt"
	"runtime"

	"cryo/internal/image"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"golang.org/x/sync/errgroup"
)

// restorePlan is everything that is decided before the first task exists.
type restorePlan struct {
	set     *restorers.Set
	tree    *restorers.Tree
	layouts map[*restorers.Node]*restorers.Layout
	spaces  map[*restorers.Node]*restorers.Space
	shmem   map[uint64]*restorers.Shmem
	memfds  *restorers.Memfds
	sysv    *restorers.SysVs
	cgroups *restorers.Cgroups
	net     *restorers.NetNS // nil: there is none to make
	pids    *restorers.PIDNS
	uts     *restorers.UTSNS
	envoy   int // the id in a new pid namespace of who has the tool's descriptors there
	files   *restorers.FilePlan
	paths   *restorers.Paths
	locks   map[int][]restorers.FileLock // by the pid of who has them
	base    *restorers.Base
	owners  restorers.Owners
	again   map[*restorers.Node]bool // whose pages are read again when they have been written
	hole    remote.Area              // where the interpreter lies in every task
	slots   int                      // how many programs it has room for
	park    restorers.Park
}

// Sizes of what the tool has in a task's address space.
const (
	restoreSlots    = 64
	restoreSlotSize = 32 << 10
	parkSize        = 256 << 10
)

// plan turns a set into a restorePlan, or says what stands in the way.
func (r *restorer) plan(_ *pipeline.Stage, in *groupedSet) (*restorePlan, error) {
	set := in.Set
	p := &restorePlan{set: set, cgroups: in.cgroups, layouts: map[*restorers.Node]*restorers.Layout{}, spaces: map[*restorers.Node]*restorers.Space{}}
	if err := r.checkCPU(); err != nil {
		return nil, err
	}
	var err error
	if p.base, err = restorers.ReadBase(); err != nil {
		return nil, err
	}
	if p.pids, err = restorers.PlanPIDNS(set); err != nil {
		return nil, err
	}
	if p.uts, err = restorers.PlanUTSNS(set); err != nil {
		return nil, err
	}
	if p.tree, err = restorers.PlanTree(set, r.o.ShellJob, p.sparePID); err != nil {
		return nil, err
	}
	if err := p.checkIDs(); err != nil {
		return nil, err
	}
	p.owners = restorers.Owners{}
	for _, n := range p.tree.Nodes {
		if n.Task != nil {
			p.owners[uint64(n.ID)] = uint64(n.Task.PPID)
		}
	}
	if err := p.checkSharing(); err != nil {
		return nil, err
	}
	if p.net, err = r.planNet(set); err != nil {
		return nil, err
	}
	opt, err := r.fileOptions()
	if err != nil {
		return nil, err
	}
	if opt.Lender = opt.ToolPID; p.pids.New {
		if p.envoy, err = p.sparePID(p.tree.Taken); err != nil {
			return nil, err
		}
		opt.Lender = p.envoy
	}
	opt.Tree = p.tree
	p.paths = restorers.NewPaths(set, opt)
	if p.memfds, err = restorers.NewMemfds(set); err != nil {
		return nil, err
	}
	opt.Memfds = p.memfds
	if err := p.tasks(); err != nil {
		return nil, err
	}
	if p.sysv, err = restorers.NewSysVs(set, p.layouts); err != nil {
		return nil, err
	}
	if p.files, err = restorers.PlanFiles(set, p.tree, restorerKinds(), p.paths, opt); err != nil {
		return nil, err
	}
	if p.locks, err = restorers.FileLocks(set); err != nil {
		return nil, err
	}
	if len(p.locks) > 0 && !r.o.FileLocks {
		r.log.Warn("The set has file locks. They are not restored without --file-locks")
		p.locks = nil
	}
	return p, p.room()
}

// tasks checks all tasks and takes over the layout of their memory.
func (p *restorePlan) tasks() error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, t := range p.set.Tasks {
		if !t.Dead() {
			g.Go(func() error { return p.task(t) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, t := range p.set.Tasks {
		if t.Dead() {
			continue
		}
		if n := p.tree.ByPID[t.PID]; !sharesMemory(n) {
			p.layouts[n] = t.Layout
		}
		if err := p.paths.CheckNamed(t, t.Layout); err != nil {
			return err
		}
	}
	return nil
}

// task checks the state of one task and finds out where its memory has pages.
func (p *restorePlan) task(t *restorers.Task) error {
	if err := checkNamespaces(t, p.set.Tasks[0].IDs, p.set.Inventory.GetRootIds()); err != nil {
		return err
	}
	err := restorers.EachThread(t, func(th *restorers.Thread) error { return restorers.CheckState(p.stateOf(t, th, nil)) })
	if err != nil {
		return err
	}
	if err := restorers.CheckMM(t.PID, t.MM); err != nil {
		return err
	}
	if sharesMemory(p.tree.ByPID[t.PID]) {
		if len(t.MM.GetVmas()) > 0 {
			return image.Errorf(image.MM.File(uint64(t.PID)), 0, "%s has mappings, but shares the memory of its parent", t)
		}
		return nil
	}
	return t.Layout.MarkPages(p.set.Source, t.PID)
}

// stateOf is what the emitters of state need to know of a thread.
func (p *restorePlan) stateOf(t *restorers.Task, th *restorers.Thread, b *remote.Builder) *restorers.StateEmit {
	return &restorers.StateEmit{Builder: b, Task: t.Core, Thread: th.Core, MM: t.MM, PID: t.PID, TID: th.TID, Base: p.base, Filters: p.set.Seccomp, Locks: p.locks[t.PID]}
}

// checkNamespaces refuses tasks of other namespaces than the dump's tool had; their network, pid and UTS namespaces may be
// those of the root, which have been planned.
func checkNamespaces(t *restorers.Task, root, own *criu_core.TaskKobjIdsEntry) error {
	if root.GetNetNsId() != 0 && t.IDs.GetNetNsId() != root.GetNetNsId() {
		return fmt.Errorf("%s is in another network namespace than the root: that is not built yet", t)
	}
	if t.IDs.GetPidNsId() != root.GetPidNsId() {
		return fmt.Errorf("%s is in another pid namespace than the root: that is not built yet", t)
	}
	if t.IDs.GetUtsNsId() != root.GetUtsNsId() {
		return fmt.Errorf("%s is in another UTS namespace than the root: that is not built yet", t)
	}
	for _, ns := range []struct {
		name string
		id   func(*criu_core.TaskKobjIdsEntry) uint32
	}{
		{"ipc", (*criu_core.TaskKobjIdsEntry).GetIpcNsId},
		{"mnt", (*criu_core.TaskKobjIdsEntry).GetMntNsId}, {"user", (*criu_core.TaskKobjIdsEntry).GetUserNsId},
		{"time", (*criu_core.TaskKobjIdsEntry).GetTimeNsId},
	} {
		if id := ns.id(t.IDs); id != 0 && own != nil && id != ns.id(own) {
			return fmt.Errorf("%s has a %s namespace of its own: namespaces are not built yet", t, ns.name)
		}
	}
	return nil
}

// checkIDs refuses ids that other tasks of the system have.
func (p *restorePlan) checkIDs() error {
	if p.pids.New {
		return nil
	}
	for _, n := range p.tree.Nodes {
		if err := taken(n.ID, "task"); err != nil {
			return err
		}
		if n.Helper() {
			continue
		}
		for _, th := range n.Threads[1:] {
			if err := taken(th.TID, "thread"); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSharing refuses what clone flags cannot bring about: a task shares with its forker or with nobody before it.
func (p *restorePlan) checkSharing() error {
	for _, of := range []struct {
		what string
		id   func(*criu_core.TaskKobjIdsEntry) uint32

		inMemory bool // only those who share memory can
	}{
		{"descriptor table", (*criu_core.TaskKobjIdsEntry).GetFilesId, false},
		{"root and working directory", (*criu_core.TaskKobjIdsEntry).GetFsId, false},
		{"memory", (*criu_core.TaskKobjIdsEntry).GetVmId, true},
		{"signal actions", (*criu_core.TaskKobjIdsEntry).GetSighandId, true},
	} {
		first := map[uint32]*restorers.Node{}
		for _, n := range p.tree.Nodes {
			if n.Helper() || n.Dead() {
				continue
			}
			id := of.id(n.IDs)
			other := first[id]
			if other == nil {
				first[id] = n
				continue
			}
			f := n.Forker
			if f.Helper() || of.id(f.IDs) != id || of.inMemory && f.IDs.GetVmId() != n.IDs.GetVmId() {
				return fmt.Errorf("%s shares its %s with %s: that is not built yet", n, of.what, other)
			}
		}
	}
	return nil
}

// sharesMemory says whether a node has the memory of its forker (CLONE_VM), and none of its own.
func sharesMemory(n *restorers.Node) bool {
	f := n.Forker
	return !n.Helper() && !n.Dead() && f != nil && !f.Helper() && !f.Dead() && n.IDs.GetVmId() == f.IDs.GetVmId()
}

// room finds the place for the interpreter and plans all address spaces around it.
func (p *restorePlan) room() error {
	var all [][]*restorers.Area
	for _, l := range p.layouts {
		all = append(all, l.Areas, l.Special)
	}
	kernel, err := ownKernelAreas()
	if err != nil {
		return err
	}
	vdso, err := restorers.PlanVDSO(p.set.Source, p.tree, p.layouts, kernel)
	if err != nil {
		return err
	}
	p.slots = restoreSlots
	for _, n := range p.tree.Nodes {
		if sharesMemory(n) {
			p.slots++
		}
	}
	engine := remote.HoleSize(p.slots, restoreSlotSize)
	size := engine + parkSize + vdso.Size()
	at, err := restorers.FindHole(all, size)
	if err != nil {
		return err
	}
	p.hole = remote.Area{Start: at, Size: engine}
	p.park = restorers.Park{At: at + engine, Size: parkSize}
	for n, l := range p.layouts {
		if err := vdso.Move(l, at+engine+parkSize); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		if err := checkOutsideVDSO(n, l); err != nil {
			return err
		}
	}
	p.again = map[*restorers.Node]bool{}
	owner := map[*restorers.Node]*restorers.Node{} // whose memory a node has when it forks
	for _, n := range p.tree.Nodes {
		base := owner[n.Forker]
		owner[n] = base
		if p.layouts[n] != nil {
			p.spaces[n] = restorers.PlanSpace(n, base, p.layouts)
			if p.spaces[n].Compares() {
				p.again[base] = true
			}
			owner[n] = n
		}
	}
	p.shmem, err = restorers.PlanShmem(p.tree, p.layouts, restorers.Range{Start: at, End: at + size})
	return err
}

// checkOutsideVDSO refuses a thread that was dumped in the middle of a function of another kernel's vdso.
func checkOutsideVDSO(n *restorers.Node, l *restorers.Layout) error {
	for _, th := range n.Threads {
		if pc := th.State.Regs.PC(); pc >= l.OldVDSO.Start && pc < l.OldVDSO.End {
			return fmt.Errorf("%s: thread %d was in a function of the vdso of another kernel, which cannot go on here: dump it again", n, th.TID)
		}
	}
	return nil
}

// pagesOf is the page map of a node's memory.
func (p *restorePlan) pagesOf(n, base *restorers.Node, pid int) *restorers.PageFill {
	f := &restorers.PageFill{Source: p.set.Source, Kind: image.TaskPages, ID: uint64(n.ID), PID: pid, Parts: p.spaces[n].Parts, Owners: p.owners}
	f.Known[0] = p.layouts[n].Pages
	f.Last = !p.again[n] && p.set.Inventory.GetImgVersion() != image.FormatShared
	if base != nil {
		f.Base, f.Known[1] = uint64(base.ID), p.layouts[base].Pages
	}
	return f
}
