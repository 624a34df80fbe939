package stages

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"cryo/collectors"
	"cryo/internal/dirty"
	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/internal/spread"
	"cryo/pipeline"
	"cryo/sinks"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"golang.org/x/sys/unix"
)

// tracking is what a dump knows of the changes of memory since the previous set, and what it leaves for the next one.
type tracking struct {
	arm     bool         // follow the tasks from now on
	parent  image.Source // the previous set, nil if there is none
	before  *inventory.InventoryEntry
	keeper  *dirty.Keeper // of an earlier run; nil: there is none
	trusted bool          // the tasks have been followed since the parent was made
	tasks   []tracked
}

// tracked is a task that is followed.
type tracked struct {
	task *collectors.Task
	by   *dirty.Tracker // nil: it cannot be
}

// openTracking looks for the previous set and for who has been following the tree since. images is the directory of the
// new set, nil if it has none.
func openTracking(o *options.Options, images *os.File) (*tracking, error) {
	tr := &tracking{arm: o.TrackMem && o.Final != options.Kill}
	if !o.TrackMem && o.PrevImagesDir == "" {
		return tr, nil
	}
	if o.TrackMem && dirty.Kernel() == dirty.None {
		return nil, errors.New("--track-mem: the kernel has neither soft-dirty bits (CONFIG_MEM_SOFT_DIRTY) nor asynchronous write protection (Linux 6.7, CONFIG_USERFAULTFD)")
	}
	if err := tr.openParent(o, images); err != nil {
		return nil, err
	}
	var err error
	if tr.keeper, err = dirty.FindKeeper(o.Tree); err != nil {
		tr.close()
		return nil, err
	}
	tr.trusted = tr.parent != nil && tr.trusts()
	if tr.parent != nil && !tr.trusted {
		slog.Warn("Memory has not been tracked since the previous set was made: all of it will be stored")
	}
	return tr, nil
}

// openParent opens the previous set and refuses what cannot be it.
func (tr *tracking) openParent(o *options.Options, images *os.File) error {
	if o.PrevImagesDir == "" {
		return nil
	}
	if o.Stream {
		return errors.New("--prev-images-dir: what goes to criu-image-streamer has no previous set")
	}
	fail := func(err error) error { return fmt.Errorf("previous set %s: %w", o.PrevImagesDir, err) }
	if images == nil {
		work, err := os.Open(o.Work())
		if err != nil {
			return fail(err)
		}
		defer work.Close()
		images = work
	}
	fd, err := unix.Openat(int(images.Fd()), o.PrevImagesDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(fmt.Errorf("%w: --prev-images-dir is relative to the images directory, or the work directory where they are piped", err))
	}
	set := image.NewDir(os.NewFile(uintptr(fd), o.PrevImagesDir))
	tr.parent = set
	var own, up unix.Stat_t
	err = errors.Join(unix.Fstat(int(images.Fd()), &own), unix.Fstat(fd, &up))
	if err == nil && own.Dev == up.Dev && own.Ino == up.Ino {
		err = errors.New("it is the directory of the new one: use another for each set of a chain")
	}
	var plain image.Source
	if err == nil {
		if plain, err = unseal(o, set); err == nil {
			tr.parent = image.Packed(plain)
			tr.before, err = image.ReadInventory(tr.parent)
		}
	}
	if err == nil && tr.before.GetDumpUptime() > uptime() {
		err = errors.New("it is newer than this moment, so it was made on another machine or after another boot")
	}
	if err != nil {
		tr.close()
		return fail(err)
	}
	return nil
}

// trusts says whether what was found follows the tasks since the parent was made and not since another set.
func (tr *tracking) trusts() bool {
	if tr.before.DumpUptime == nil {
		return false
	}
	if dirty.Kernel() == dirty.SoftDirty {
		return true // the bits do not say since when; like criu we believe the user
	}
	return tr.keeper != nil && tr.before.GetDumpCriuRunId() == tr.keeper.Set
}

// comparable says whether the pages of the previous set are here, and are stored as they are: what would have to be decompressed or
// decrypted first is better stored anew.
func (tr *tracking) comparable(o *options.Options) bool {
	return tr.parent != nil && o.ImagesDir != piped && !o.PageServer && o.Key == nil && tr.before.GetImgVersion() == image.FormatV1_1
}

// uptime is the time since boot in microseconds.
func uptime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano()) / uint64(time.Microsecond)
}

func (tr *tracking) close() {
	if tr == nil {
		return
	}
	for _, t := range tr.tasks {
		if t.by != nil {
			t.by.Close()
		}
	}
	if tr.keeper != nil {
		tr.keeper.Close()
	}
	if tr.parent != nil {
		tr.parent.Close()
	}
}

// parentID names the previous set by what its inventory says, empty if there is none.
func (tr *tracking) parentID() string { return tr.before.GetDumpCriuRunId() }

// used says whether there is anything to do.
func (tr *tracking) used() bool { return tr != nil && (tr.arm || tr.trusted) }

// trackMemory lists the pages of all tasks, which stand still, and which of them have been written since the previous
// set, and begins to follow them anew. From here on the keeper of an earlier run is of no use.
func (d *dumper) trackMemory(s *pipeline.Stage, tasks []*collectors.Task) ([]*collectors.Task, error) {
	tr := d.track
	if err := tr.refuseForeign(tasks[0], d.o.PageServer); err != nil {
		return nil, err
	}
	if !tr.used() {
		return tasks, nil
	}
	old := map[int]*dirty.Tracker{}
	if tr.keeper != nil {
		old = tr.keeper.Trackers()
		if tr.arm {
			if err := tr.keeper.End(); err != nil {
				return nil, err
			}
		}
	}
	live := slices.DeleteFunc(slices.Clone(tasks), func(t *collectors.Task) bool { return !t.HasMemory() })
	tr.tasks = make([]tracked, len(live))
	for i, t := range live {
		tr.tasks[i] = tracked{t, old[t.Pid]}
		delete(old, t.Pid)
	}
	for _, by := range old {
		by.Close()
	}
	if err := d.beginTracking(s); err != nil {
		return nil, err
	}
	err := spread.Range(len(live), 1, func(i int) error { return d.follow(s, &tr.tasks[i]) })
	if err == nil && !d.memory.ahead && dirty.Kernel() == dirty.WriteProtect { // clear_refs would have to wait for it
		d.startFlags(live)
	}
	if err == nil {
		err = spread.Range(len(live), 1, func(i int) error { return tr.list(&tr.tasks[i]) })
	}
	if err == nil && tr.arm {
		err = spread.Range(len(live), 1, func(i int) error { return armTask(&tr.tasks[i]) })
	}
	return tasks, err
}

// beginTracking makes trackers of those tasks that have none yet and are to be followed.
func (d *dumper) beginTracking(s *pipeline.Stage) error {
	var fresh []*tracked
	for i := range d.track.tasks {
		t := &d.track.tasks[i]
		switch {
		case t.by != nil:
		case dirty.Kernel() == dirty.SoftDirty:
			t.by = dirty.NewSoftDirty(t.task.Pid) // it may have been followed by its own bits
		case d.track.arm:
			fresh = append(fresh, t)
		}
	}
	return d.newTrackers(s, fresh)
}

// refuseForeign refuses a previous set that has nothing of the tree.
func (tr *tracking) refuseForeign(root *collectors.Task, elsewhere bool) error {
	if tr.parent == nil || elsewhere {
		return nil
	}
	there, err := tr.parent.Exists(image.Pagemap.File(uint64(root.VPid)))
	if err == nil && !there {
		err = fmt.Errorf("previous set %s: it holds no memory of task %d, so it is one of another tree", tr.parent, root.VPid)
	}
	return err
}

// list lists the pages of a task.
func (tr *tracking) list(t *tracked) error {
	since := t.by != nil && tr.trusted && t.task.Stat.StartTime <= tr.before.GetDumpUptime()/(uint64(time.Second/time.Microsecond)/ticks)
	if err := t.task.Memory.Track(t.task, t.by, since); err != nil {
		return fmt.Errorf("task %d: %w", t.task.Pid, err)
	}
	return nil
}

// follow looks what of a task has been followed, and follows all of it if it is to be. A task that has called exec since the
// last set needs another tracker for that.
func (d *dumper) follow(s *pipeline.Stage, t *tracked) error {
	err := t.task.Memory.Follow(t.task, t.by, d.track.arm)
	if errors.Is(err, dirty.ErrGone) {
		t.by.Close()
		t.by, err = nil, nil
		if d.track.arm {
			err = d.newTrackers(s, []*tracked{t})
		}
		if err == nil {
			err = t.task.Memory.Follow(t.task, t.by, d.track.arm)
		}
	}
	if err != nil {
		return fmt.Errorf("task %d: %w", t.task.Pid, err)
	}
	return nil
}

// armTask begins a new period for a task.
func armTask(t *tracked) error {
	if t.by == nil {
		return nil
	}
	if err := t.task.Memory.Arm(t.task, t.by); err != nil {
		return fmt.Errorf("task %d: %w", t.task.Pid, err)
	}
	return nil
}

// ticks is USER_HZ, the unit of start times, the same on all architectures that are supported.
const ticks = 100

// newTrackers makes trackers of tasks; none, with a word, where a task cannot be followed and will be stored whole.
func (d *dumper) newTrackers(s *pipeline.Stage, tasks []*tracked) error {
	for chunk := range slices.Chunk(tasks, askedTogether) {
		list := make([]*collectors.Task, len(chunk))
		for i, t := range chunk {
			list[i] = t.task
		}
		err := d.tracer.Do(func() error {
			trackers, errs := collectors.NewTrackers(list)
			for i, t := range chunk {
				t.by = trackers[i]
				if errs[i] != nil {
					s.Logger().Warn(fmt.Sprintf("The memory of task %d cannot be tracked: %v", t.task.Pid, errs[i]))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// parentPages opens what the previous set has of a task; nil if nothing of it counts.
func (tr *tracking) parentPages(sink sinks.Sink, t *collectors.Task) (collectors.ParentPages, error) {
	if tr == nil || !tr.trusted {
		return nil, nil
	}
	if server := sinks.Server(sink); server != nil {
		known := sinks.Sent(tr.parent)
		if there, err := known.Exists(image.Pagemap.File(uint64(t.VPid))); err != nil {
			return nil, err
		} else if there {
			return collectors.OpenParent(known, image.TaskPages, uint64(t.VPid))
		}
		has, err := server.HasParent(image.TaskPages, uint64(t.VPid))
		if err != nil || !has {
			return nil, err
		}
		return collectors.ParentElsewhere, nil
	}
	return collectors.OpenParent(tr.parent, image.TaskPages, uint64(t.VPid))
}

// keep leaves the trackers to a keeper, when the set is valid: the next dump that names it as its previous one finds
// them. Without a keeper that dump stores everything.
func (d *dumper) keep(s *pipeline.Stage) {
	if !d.track.arm || dirty.Kernel() == dirty.SoftDirty {
		return
	}
	kept := dirty.Kept{Set: d.runID, Root: d.o.Tree}
	var trackers []*dirty.Tracker
	var pidfds []int
	for _, t := range d.track.tasks {
		if t.by == nil {
			continue
		}
		pidfd, err := t.task.Pidfd()
		if err != nil {
			continue
		}
		kept.Tasks = append(kept.Tasks, dirty.KeptTask{Pid: t.task.Pid, Start: t.task.Stat.StartTime})
		trackers, pidfds = append(trackers, t.by), append(pidfds, pidfd)
	}
	if len(trackers) == 0 {
		return
	}
	if err := dirty.Keep(kept, trackers, pidfds); err != nil {
		s.Logger().Warn(err.Error())
	}
}
