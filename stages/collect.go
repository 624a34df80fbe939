package stages

import (
	"cmp"

	"cryo/collectors"
	"cryo/pipeline"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"golang.org/x/sync/errgroup"
)

// probed is a task with what /proc tells of it, before anything is numbered.
type probed struct {
	*collectors.Task
	fds []*collectors.Probe
}

// collectFDs reads what /proc tells of one task. Several tasks are read at the same time.
func (d *dumper) collectFDs(_ *pipeline.Stage, t *collectors.Task) (probed, error) {
	if !t.Live() {
		return probed{Task: t}, nil
	}
	var beside errgroup.Group
	beside.Go(func() (err error) {
		t.Memory, err = collectors.ReadMemory(t)
		return err
	})
	err := collectors.CollectStat(t)
	var fds []*collectors.Probe
	if err == nil {
		fds, err = d.env.Prober.FDs(t)
	}
	return probed{t, fds}, cmp.Or(err, beside.Wait())
}

// identify numbers what a task uses: kernel objects, namespaces, files. Tasks come in their order.
func (d *dumper) identify(_ *pipeline.Stage, p probed) (*collectors.Task, error) {
	t := p.Task
	if !t.Live() {
		return t, nil
	}
	if err := d.env.Namespaces.Identify(d.env, t); err != nil {
		return nil, err
	}
	if err := collectors.CollectNamed(d.env, t); err != nil {
		return nil, err
	}
	if t.SharesFiles == nil {
		if err := d.env.Files.Collect(t, p.fds); err != nil {
			return nil, err
		}
	}
	if t.HasMemory() {
		if err := t.Memory.Register(d.env, t); err != nil {
			return nil, err
		}
	}
	return t, d.cgroups.Number(d.env, t)
}

// Shared is what belongs to no single task.
type Shared struct {
	Cgroups *cgroup.CgroupEntry
}

// collectShared collects what belongs to no single task.
func (d *dumper) collectShared(_ *pipeline.Stage, tree *Tree) (*Shared, error) {
	return &Shared{}, nil
}

// collectCgroups stores the control groups of the tree. All threads have been numbered by then.
func (d *dumper) collectCgroups(_ *pipeline.Stage, shared *Shared, _ []*collectors.Task) (*Shared, error) {
	var err error
	shared.Cgroups, err = d.cgroups.Groups()
	return shared, err
}
