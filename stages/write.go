package stages

import (
	"cryo/arch"
	"cryo/collectors"
	"cryo/internal/image"
	"cryo/internal/spread"
	"cryo/pipeline"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// writeTask writes the images of one task.
func (d *dumper) writeTask(_ *pipeline.Stage, t *collectors.Task) (*collectors.Task, error) {
	set, id := d.env.Images, uint64(t.VPid)
	if !t.Live() {
		return t, image.Write(set, image.Core, id, zombieCore(t))
	}
	if err := image.Write(set, image.IDs, id, t.Kobj); err != nil {
		return nil, err
	}
	if t.SharesFiles == nil {
		if err := image.Write(set, image.Fdinfo, uint64(t.IDs.Files), t.FDs...); err != nil {
			return nil, err
		}
	}
	if err := image.Write(set, image.Fs, id, t.FS); err != nil {
		return nil, err
	}
	if t.HasMemory() {
		if err := t.Memory.FillMM(t.MM); err != nil {
			return nil, err
		}
	}
	if err := image.Write(set, image.MM, id, t.MM); err != nil {
		return nil, err
	}
	return t, nil
}

// writeCores writes the cores of threads and lets go of what they were made of. Of a tree that will be refused nothing is
// written.
func (d *dumper) writeCores(_ *pipeline.Stage, p told) (told, error) {
	defer p.task.ForgetAnswers(p.threads)
	if d.env.Obstacles.Err() != nil {
		return p, nil
	}
	return p, spread.Range(len(p.threads), coreChunk, func(i int) error {
		th := p.threads[i]
		return image.Write(d.env.Images, image.Core, uint64(th.VTid), th.Core)
	})
}

// coreChunk is how many cores of one task are written at a time.
const coreChunk = 32

// zombieCore is the core of a task that has only an exit status left.
func zombieCore(t *collectors.Task) *criu_core.CoreEntry {
	return &criu_core.CoreEntry{Mtype: arch.March.Enum(), Tc: &criu_core.TaskCoreEntry{
		TaskState: proto.Uint32(uint32(t.State)), ExitCode: proto.Uint32(uint32(t.ExitCode)), Personality: proto.Uint32(0),
		Flags: proto.Uint32(0), BlkSigset: proto.Uint64(0), Comm: proto.String(t.Stat.Comm),
	}}
}

// writeImages writes the images of the whole tree and returns the inventory.
func (d *dumper) writeImages(s *pipeline.Stage, tasks []*collectors.Task, shared *Shared) (valid, error) {
	set := d.env.Images
	if err := writePstree(set, tasks); err != nil {
		return valid{}, err
	}
	if err := d.env.Files.Write(); err != nil {
		return valid{}, err
	}
	if err := image.Write(set, image.Seccomp, 0, d.tracees.Seccomp()); err != nil {
		return valid{}, err
	}
	if shared.Cgroups != nil {
		if err := image.Write(set, image.Cgroup, 0, shared.Cgroups); err != nil {
			return valid{}, err
		}
	}
	if err := d.env.UTSNS.Write(set); err != nil {
		return valid{}, err
	}
	if err := writeClocks(set); err != nil {
		return valid{}, err
	}
	if err := writeCPU(set, d.o); err != nil {
		return valid{}, err
	}
	inv, err := d.inventory()
	return valid{tasks, inv}, err
}

func writePstree(set image.Creator, tasks []*collectors.Task) error {
	entries := make([]*pstree.PstreeEntry, len(tasks))
	for i, t := range tasks {
		e := &pstree.PstreeEntry{
			Pid: proto.Uint32(uint32(t.VPid)), Ppid: proto.Uint32(0),
			Pgid: proto.Uint32(uint32(t.PGid)), Sid: proto.Uint32(uint32(t.Sid)),
		}
		if t.Parent != nil {
			e.Ppid = proto.Uint32(uint32(t.Parent.VPid))
		}
		for _, th := range t.Threads {
			e.Threads = append(e.Threads, uint32(th.VTid))
		}
		if len(t.Threads) == 0 {
			e.Threads = []uint32{uint32(t.VPid)}
		}
		entries[i] = e
	}
	return image.Write(set, image.Pstree, 0, entries...)
}

// writeClocks notes the monotonic and the boot-time clock: a restore into a time namespace lets them go on from here.
func writeClocks(set image.Creator) error {
	now := func(clock int32) (*timens.Timespec, error) {
		var ts unix.Timespec
		err := unix.ClockGettime(clock, &ts)
		return &timens.Timespec{TvSec: proto.Uint64(uint64(ts.Sec)), TvNsec: proto.Uint64(uint64(ts.Nsec))}, err
	}
	monotonic, err := now(unix.CLOCK_MONOTONIC)
	if err != nil {
		return err
	}
	boottime, err := now(unix.CLOCK_BOOTTIME)
	if err != nil {
		return err
	}
	return image.Write(set, image.Timens, 0, &timens.TimensEntry{Monotonic: monotonic, Boottime: boottime})
}

func (d *dumper) inventory() (*inventory.InventoryEntry, error) {
	e := &inventory.InventoryEntry{
		ImgVersion: proto.Uint32(image.FormatV1_1), FdinfoPerId: proto.Bool(true), NsPerId: proto.Bool(true),
		RootIds: d.rootIDs, RootCgSet: proto.Uint32(d.cgroups.Own()), Lsmtype: inventory.Lsmtype_NO_LSM.Enum(),
		NetworkLockMethod: proto.Uint32(uint32(d.lockMethod())), PluginsEntry: &inventory.PluginsEntry{},
		DumpCriuRunId: proto.String(d.runID),
	}
	if d.o.ShareCOW {
		e.ImgVersion = proto.Uint32(image.FormatShared)
	}
	if d.o.TCPClose {
		e.TcpClose = proto.Bool(true)
	}
	if d.o.TrackMem {
		e.DumpUptime = proto.Uint64(uptime())
	}
	return e, nil
}
