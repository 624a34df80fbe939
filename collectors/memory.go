package collectors

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"cryo/internal/image"
	"cryo/internal/pagecopy"
	"cryo/internal/pagemap"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Memory is the address space of a task: its mappings, from which the entries of mm-PID.img are made, and what
// decides where the contents of each go.
//
// It is filled in three steps. ReadMemory lists, for several tasks at once, before anything is injected: what is
// carried in is not in the list. Register names files and shared objects in task order. DumpPages walks the
// pages, and finds the guard regions on its way. FillMM then has all that the image says.
type Memory struct {
	maps    []vma.Mapping
	kinds   []vma.Kind
	entries []*vmapb.VmaEntry // one a mapping; nil for one that is in no image
	locked  bool              // something is mlocked
	flags   func() ([]vma.Flags, error)
	guards  []pagemap.Region

	sharedPages []pagecopy.Range // that the parent task has as well, and stores

	watched map[int]*watchedPages // by mapping: those that a userfaultfd of the tree watches

	leave bool             // pages that may come late stay in the task
	late  []pagecopy.Range // those

	tracking  *Tracking     // set by Track
	parent    ParentPages   // what the parent set has of the task; nil: nothing
	keepZero  bool          // pages of zeros are stored, too
	ahead     bool          // only what is written is stored, not what is needed for a restore
	deadRings map[int]bool  // AIO rings of no context of this task
	shared    *SharedMemory // set by Register
	flagged   bool          // the flags are in the entries
	checked   bool

	copy *memoryCopy // where pages are read from; nil: the task
}

// From so many mappings, or so many KiB in memory, on smaps is read beside all the work that does not need it: it takes the
// kernel 3 microseconds a mapping and 40 milliseconds a GiB.
const (
	manyMappings = 512
	muchMemory   = 64 << 10
)

// ReadMemory lists the mappings of a task. Nothing in the task may run from now on.
func ReadMemory(t *Task) (*Memory, error) {
	flags := flagsOf(t.Pid)
	if !much(t) {
		go flags()
	}
	return listMemory(t, flags)
}

// AwaitFlags waits until smaps has been read, where it is read at once. What maps, unmaps or registers anything in the
// task comes after it.
func (m *Memory) AwaitFlags(t *Task) (err error) {
	if m.small(t) {
		_, err = m.flags()
	}
	return err
}

// ReadFlags begins to read smaps of a task with much memory. The kernel lets nobody map, unmap or register anything in
// the task meanwhile, so this comes when that has been done.
func (m *Memory) ReadFlags(t *Task) {
	if much(t) {
		go m.flags()
	}
}

// much says whether smaps takes longer than putting the engine into a task.
func much(t *Task) bool { return t.Status == nil || t.Status.VmRSS >= muchMemory }

// ListMemory is ReadMemory without what only smaps tells, which takes the kernel a walk over all pages.
func ListMemory(t *Task) (*Memory, error) { return listMemory(t, flagsOf(t.Pid)) }

// flagsOf returns what reads smaps of a task, once.
func flagsOf(pid int) func() (*vma.TaskFlags, error) {
	return sync.OnceValues(func() (*vma.TaskFlags, error) {
		flagReaders <- struct{}{}
		defer func() { <-flagReaders }()
		return vma.ReadFlags(pid)
	})
}

// flagReaders has room for who reads smaps at the same time: each takes a processor, and a thread of this process.
var flagReaders = make(chan struct{}, runtime.GOMAXPROCS(0))

func listMemory(t *Task, flags func() (*vma.TaskFlags, error)) (*Memory, error) {
	maps, err := vma.List(t.Pid)
	if err != nil {
		return nil, err
	}
	m := &Memory{maps: maps, locked: t.Status == nil || t.Status.VmLck != 0}
	m.kinds = make([]vma.Kind, len(maps))
	m.entries = make([]*vmapb.VmaEntry, len(maps))
	for i := range maps {
		m.kinds[i] = maps[i].Kind()
		m.entries[i] = maps[i].Entry(0)
		if !maps[i].HasFile() {
			continue
		}
		// A private mapping takes a file that is open for reading, whatever else it was open for.
		m.entries[i].Fdflags = proto.Uint32(unix.O_RDONLY)
		if maps[i].Shared {
			if err := m.openMode(t, i); err != nil {
				return nil, err
			}
		}
	}
	m.flagsFrom(flags)
	return m, nil
}

// flagsFrom takes the flags of the mappings from where they are read.
func (m *Memory) flagsFrom(flags func() (*vma.TaskFlags, error)) {
	m.flags = sync.OnceValues(func() ([]vma.Flags, error) {
		all, err := flags()
		if err != nil {
			return nil, err
		}
		return all.Of(m.maps)
	})
}

// small says whether smaps is read at once.
func (m *Memory) small(t *Task) bool {
	return len(m.maps) < manyMappings && !much(t)
}

// openMode notes with what rights the mapped file was open: the modes of the link in map_files are the file's.
func (m *Memory) openMode(t *Task, i int) error {
	var st unix.Stat_t
	link := mapLink(&m.maps[i])
	err := unix.Fstatat(t.Proc.Fd(), link, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		m.entries[i].Fdflags = nil // an area of the kernel's that merely looks like a file
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat %s: %w", t.Proc.Path(link), err)
	}
	switch st.Mode & 0o600 {
	case 0o600:
		m.entries[i].Fdflags = proto.Uint32(unix.O_RDWR)
	case 0o200:
		m.entries[i].Fdflags = proto.Uint32(unix.O_WRONLY)
	default:
		m.entries[i].Fdflags = proto.Uint32(unix.O_RDONLY)
	}
	return nil
}

// mapLink is the name below /proc/PID of the link to a mapping's file.
func mapLink(m *vma.Mapping) string { return "map_files/" + m.Link() }

// Register gives the files and shared objects behind the mappings their ids and notes what stands in the way of a
// dump. It is called in task order. What stands in the way of a large task is known only after Check,
// unless this is a dry run.
func (m *Memory) Register(env *Env, t *Task) error {
	m.shared = env.Shared
	for i := range m.maps {
		if err := m.register(env, t, i); err != nil {
			return err
		}
	}
	if m.small(t) || env.DryRun {
		return m.Check(env, t)
	}
	return nil
}

// mappedFile is what segments of one file have in common, in all tasks, seen through one path.
type mappedFile struct {
	dev, ino uint64
	name     string
}

func (m *Memory) register(env *Env, t *Task, i int) error {
	mp, e := &m.maps[i], m.entries[i]
	switch m.kinds[i] {
	case vma.SharedAnonymous:
		return env.Shared.mapped(t, mp)
	case vma.SysV:
		return noteObstacle(env, env.Shared.attached(t, mp))
	case vma.Uprobes:
		if !env.Options.AllowUprobes {
			m.obstacle(env, t, mp, "probes of the kernel (uprobes) are set in it", "--allow-uprobes")
		}
		m.entries[i] = nil
	case vma.File, vma.Memfd:
		key := mappedFile{mp.Dev, mp.Inode, mp.Name}
		id, known := env.Shared.files[key]
		if !known {
			var err error
			if id, err = m.fileID(env, t, i); err != nil || id == 0 {
				return err
			}
			env.Shared.files[key] = id
		}
		e.Shmid = proto.Uint64(id)
	}
	return nil
}

// fileID names the file behind mapping i for the images; 0 if it cannot be dumped, which is noted, or is none.
func (m *Memory) fileID(env *Env, t *Task, i int) (uint64, error) {
	mp := &m.maps[i]
	link := mapLink(mp)
	if m.kinds[i] == vma.Memfd {
		id, err := env.Shared.memfdMapping(env, t, mp)
		return uint64(id), err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(t.Proc.Fd(), link, &st, 0); err != nil {
		return 0, fmt.Errorf("stat %s: %w", t.Proc.Path(link), err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		id := env.Files.packets.ring(env.Obstacles, t, mp, st.Ino)
		vma.MapsObject(m.entries[i], id)
		return 0, nil // the next one may be another part of it
	}
	if mp.Path() == "anon_inode:"+ringKind {
		id, err := env.Files.ring(t, mp, st.Ino)
		vma.MapsObject(m.entries[i], id)
		return 0, err // the next one may be another part of it
	}
	zero := unix.Mkdev(1, 5)
	if st.Mode&unix.S_IFMT != unix.S_IFREG && !(st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == zero) {
		m.obstacle(env, t, mp, "memory of a device ("+mp.Name+")", "")
		return 0, nil
	}
	id, err := env.Files.Named(t, link)
	return uint64(id), err
}

func (m *Memory) obstacle(env *Env, t *Task, mp *vma.Mapping, what, remedy string) {
	env.Obstacles.Add(Obstacle{Pid: t.Pid, Where: "mapping " + mp.Link(), What: what, Remedy: remedy})
}

// Check waits for what the kernel says of each mapping in smaps and notes what stands in the way of a dump, once.
func (m *Memory) Check(env *Env, t *Task) error {
	if m.checked {
		return nil
	}
	m.checked = true
	if err := m.applyFlags(); err != nil {
		return err
	}
	flags, _ := m.flags()
	for i := range m.maps {
		mp, fl := &m.maps[i], flags[i]
		device := fl&(vma.IO|vma.PFNMap) != 0 && m.kinds[i] != vma.VVAR && m.kinds[i] != vma.Uprobes
		if device && m.entries[i].GetStatus()&(vma.StatusFileShared|vma.StatusSocket) == 0 {
			m.obstacle(env, t, mp, "memory of a device ("+mp.Name+")", "")
		}
		if fl&(vma.UffdMissing|vma.UffdMinor) != 0 && m.watched[i] == nil && env.Files.userfaults.resolved {
			m.obstacle(env, t, mp, onDemand, onDemandRemedy)
		}
		if fl&vma.ShadowStack != 0 {
			m.obstacle(env, t, mp, "a shadow stack, which cannot be dumped yet", "run the program without shadow stacks")
		}
	}
	return nil
}

// applyFlags waits for the flags and puts them into the entries, once.
func (m *Memory) applyFlags() error {
	if m.flagged {
		return nil
	}
	flags, err := m.flags()
	if err != nil {
		return err
	}
	for i, e := range m.entries {
		if e != nil {
			vma.ApplyFlags(e, flags[i])
		}
	}
	m.flagged = true
	return nil
}

// FillMM adds the mappings and AIO rings to the task's memory image. It comes after DumpPages.
func (m *Memory) FillMM(e *mm.MmEntry) error {
	if err := m.applyFlags(); err != nil {
		return err
	}
	var last *vmapb.VmaEntry
	for i, v := range m.entries {
		switch {
		case v == nil:
			continue
		case last != nil && vma.Is(v, vma.StatusVVAR) && vma.Is(last, vma.StatusVVAR) && last.GetEnd() == v.GetStart():
			last.End = v.End // one area to whoever moves it, however many the kernel makes of it
			continue
		case m.kinds[i] == vma.AIORing && !m.deadRings[i]:
			e.Aios = append(e.Aios, aioRing(&m.maps[i]))
		case m.kinds[i] == vma.SharedAnonymous:
			if id, ok := m.shared.mappedAsFile(&m.maps[i]); ok {
				vma.MapsMemfd(v, id)
			} else {
				image.SetShmemSize(v, m.shared.sizeOf(&m.maps[i]))
			}
		}
		e.Vmas = append(e.Vmas, v)
		last = v
	}
	slices.SortFunc(m.guards, func(a, b pagemap.Region) int { return cmp.Compare(a.Start, b.Start) })
	for _, g := range m.guards {
		e.Vmas = append(e.Vmas, vma.GuardEntry(g.Start, g.End))
	}
	return nil
}
