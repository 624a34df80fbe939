package collectors

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"cryo/internal/dirty"
	"cryo/internal/image"
	"cryo/internal/image/userfaultfd"
	"cryo/internal/pagecopy"
	"cryo/internal/pagemap"
	"cryo/internal/poll"
	"cryo/internal/remote"
	"cryo/internal/uffd"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Userfaultfd collects descriptors of userfaultfd(2) (Linux 4.3). files.img names them by a type that criu has not; what
// there is to say of one is in userfaultfd.img, when all tasks are known: whose memory it watches, which may be another
// task's than its holder's, and where. Threads that wait for a page have left the kernel when the tree stands still, and
// fault again; messages that nobody has read go with them.
type Userfaultfd struct{}

// Match takes anonymous inodes named userfaultfd.
func (Userfaultfd) Match(p *Probe) bool { return p.anonymous("[userfaultfd]") }

// uffdInitialized is the kernel's own bit among the features of a descriptor that has shaken hands.
const uffdInitialized = 1 << 31

// Collect notes the descriptor for userfaults.resolve.
func (Userfaultfd) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	parts := strings.Split(p.Info.Field("API"), ":")
	if len(parts) != 3 {
		return nil, fmt.Errorf("features of a userfaultfd: %q", p.Info.Field("API"))
	}
	features, err := strconv.ParseUint(parts[1], 16, 64)
	if err != nil {
		return nil, fmt.Errorf("features of a userfaultfd: %w", err)
	}
	const later = "dump at another moment"
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	u := &userfault{FD: uffd.FD(fd), probe: p, entry: &userfaultfd.UserfaultfdEntry{
		Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags & unix.O_NONBLOCK), Features: proto.Uint64(features &^ uffdInitialized),
	}}
	f.userfaults.list = append(f.userfaults.list, u)
	if err := u.Wake(image.PageSize, image.PageSize); errors.Is(err, unix.EINVAL) { // nobody waits there
		return nil, p.Obstacle("a userfaultfd that has not been told what it is for (UFFDIO_API)", later)
	}
	if p.Owner.GetPid() != 0 || p.Owner.GetSignum() != 0 {
		return nil, p.Obstacle("a userfaultfd whose owner is to be signalled (F_SETOWN, F_SETSIG)", "")
	}
	// A descriptor that blocks cannot be asked, but who waits for an event to be read cannot be stopped either.
	ready, err := poll.Now(fd, unix.POLLIN)
	if err == nil && ready&unix.POLLIN != 0 && p.Info.Field("pending") == "0" {
		return nil, p.Obstacle("a userfaultfd with an event that has not been read (fork, mremap, munmap)", later)
	}
	return &fdinfo.FileEntry{}, err
}

// userfault is a userfaultfd of the tree, of which the tool has a duplicate.
type userfault struct {
	uffd.FD
	probe *Probe
	entry *userfaultfd.UserfaultfdEntry
	home  *Task // whose memory it is
}

// userfaults are those of the tree.
type userfaults struct {
	list     []*userfault
	resolved bool
}

func (us *userfaults) close() {
	for _, u := range us.list {
		u.Close()
	}
	us.list = nil
}

// ResolveUserfaults finds out whose memory each userfaultfd watches, where, and which pages are there. All tasks stand still
// and have told what there is to tell; do runs something on the thread that traces them. It comes before any page is read:
// a page that is missing must not be asked for.
func (f *Files) ResolveUserfaults(tasks []*Task, do func(func() error) error) error {
	us := &f.userfaults
	us.resolved = true
	var spaces []*Task
	for _, t := range tasks {
		switch {
		case !t.HasMemory() || t.Session == nil:
		case len(us.list) > 0 || t.Memory.flagged:
			if err := t.Memory.applyFlags(); err != nil {
				return err
			}
			spaces = append(spaces, t)
		}
	}
	for _, u := range us.list {
		if f.types[u.entry.GetId()] != image.TypeUserfaultfd {
			continue // an obstacle
		}
		if err := u.findHome(spaces, do); err != nil {
			if err = f.note(u.probe, err); err != nil {
				return err
			}
		}
	}
	for _, t := range spaces {
		if err := t.Memory.watchers(f.env, t, us.list); err != nil {
			return err
		}
	}
	return nil
}

// findHome finds the task whose memory it is: the one whose pages can be registered. A page of the engine's is taken, which
// is no part of the task.
func (u *userfault) findHome(spaces []*Task, do func(func() error) error) error {
	candidates := []*Task{}
	for _, t := range spaces {
		if t == u.probe.holder() {
			candidates = append([]*Task{t}, candidates...)
		} else {
			candidates = append(candidates, t)
		}
	}
	var failed error
	for _, t := range candidates {
		page := t.Session.Spare()
		_, err := u.Register(page, image.PageSize, uffd.Missing)
		if errors.Is(err, unix.ESRCH) {
			return u.probe.Obstacle("a userfaultfd for the memory of a process that has ended or called exec", "close it before the dump")
		}
		if err != nil {
			continue
		}
		yes, err := u.watches(t, page)
		if yes && err == nil {
			err = u.askUserOnly(t, page, do)
		}
		failed = errors.Join(err, u.Unregister(page, image.PageSize))
		if yes || failed != nil {
			u.home, u.entry.Pid = t, proto.Uint32(uint32(t.VPid))
			break
		}
	}
	if failed == nil && u.home == nil {
		return u.probe.Obstacle("a userfaultfd for the memory of a process outside of the tree", "dump the tree that has both")
	}
	if failed == nil && u.home.SharesFiles != nil {
		return u.probe.Obstacle("a userfaultfd for the memory of a task that shares its descriptors with another", "")
	}
	return failed
}

// watches says whether the page that was just registered is the task's.
func (u *userfault) watches(t *Task, page uint64) (bool, error) {
	flags, err := vma.FlagsAt(t.Pid, page)
	return flags&vma.UffdMissing != 0, err
}

// faultPatience is how long a fault may take to show.
const faultPatience = 10 * time.Second

// askUserOnly finds out whether faults of the kernel itself are served: one is made on the page, which is registered. Where
// they are not it fails at once, else it waits for the page until that is taken back.
func (u *userfault) askUserOnly(t *Task, page uint64, do func(func() error) error) error {
	if u.entry.GetFeatures()&uffd.SigBus != 0 { // nobody ever waits
		*u.entry.Flags |= uffd.UserModeOnly
		return nil
	}
	b := remote.NewBuilder("empty a page")
	b.Call(unix.SYS_MUNLOCK, remote.Imm(page), remote.Imm(image.PageSize)).Discard()
	b.Call(unix.SYS_MADVISE, remote.Imm(page), remote.Imm(image.PageSize), remote.Imm(unix.MADV_DONTNEED)).Must().Discard()
	err := do(func() error { _, err := t.Session.Run(b.Program()); return err })
	if err != nil {
		return err
	}
	before, err := u.pending()
	if err != nil {
		return err
	}
	read := make(chan error, 1)
	go func() {
		var c [1]byte
		_, err := unix.ProcessVMReadv(t.Pid, []unix.Iovec{{Base: &c[0], Len: 1}}, []unix.RemoteIovec{{Base: uintptr(page), Len: 1}}, 0)
		read <- err
	}()
	for end := time.Now().Add(faultPatience); time.Now().Before(end); {
		select {
		case err := <-read:
			if errors.Is(err, unix.EFAULT) {
				*u.entry.Flags |= uffd.UserModeOnly
				err = nil
			}
			return err
		case <-time.After(100 * time.Microsecond):
		}
		if now, err := u.pending(); err != nil || now > before {
			return err // the caller unregisters the page, and the read ends
		}
	}
	return fmt.Errorf("%s: a fault of the kernel neither fails nor waits", u.probe.Where())
}

// pending is how many faults nobody has read yet.
func (u *userfault) pending() (uint64, error) {
	text, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(u.FD)))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, "pending:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("fdinfo of a userfaultfd: %q", text)
}

// modes of registering, by the flags of mappings.
var uffdModes = []struct {
	flag vma.Flags
	mode uint64
}{{vma.UffdMissing, uffd.Missing}, {vma.UffdWP, uffd.WriteProtect}, {vma.UffdMinor, uffd.Minor}}

// watchers finds out which of the userfaultfds each mapping is registered with: a second one cannot register it. Write
// protection by somebody outside of the tree is as good as none: trackers of memory do that.
func (m *Memory) watchers(env *Env, t *Task, list []*userfault) error {
	flags, err := m.flags()
	if err != nil {
		return err
	}
	var pm *pagemap.Map
	for i := range m.maps {
		mp, mode := &m.maps[i], uint64(0)
		for _, f := range uffdModes {
			if flags[i]&f.flag != 0 {
				mode |= f.mode
			}
		}
		if mode == 0 {
			continue
		}
		by := ownerOf(list, t, mp, mode)
		if by == nil {
			if mode != uffd.WriteProtect {
				m.obstacle(env, t, mp, onDemand, onDemandRemedy)
			}
			continue
		}
		if pm == nil {
			if pm, err = pagemap.Open(t.Pid); err != nil {
				return err
			}
			defer pm.Close()
		}
		if err := m.watch(env, i, by, mode, pm); err != nil {
			return err
		}
	}
	return nil
}

// What is said of memory whose faults somebody outside of the tree serves.
const (
	onDemand       = "memory that a process outside of the tree provides on demand (userfaultfd)"
	onDemandRemedy = "dump the tree that has both"
)

func ownerOf(list []*userfault, t *Task, mp *vma.Mapping, mode uint64) *userfault {
	for _, u := range list {
		if u.home != t {
			continue
		}
		if _, err := u.Register(mp.Start, mp.Len(), mode); err == nil {
			return u
		}
	}
	return nil
}

// watchedPages are the pages of a mapping that a userfaultfd of the tree watches. Pages of zeros are pages there, and no other
// may be asked for.
type watchedPages struct{ own dirty.Runs }

// watch notes mapping i.
func (m *Memory) watch(env *Env, i int, by *userfault, mode uint64, pm *pagemap.Map) error {
	mp := &m.maps[i]
	r := &userfaultfd.UserfaultfdRange{Start: proto.Uint64(mp.Start), End: proto.Uint64(mp.End), Mode: proto.Uint32(uint32(mode))}
	by.entry.Ranges = append(by.entry.Ranges, r)
	w := &watchedPages{}
	var own joinedPages
	var protected, mapped joinedPages
	err := pm.Entries(mp.Start, mp.End, func(addr uint64, e pagemap.Entry) error {
		own.add(addr, e.Own())
		protected.add(addr, mode&uffd.WriteProtect != 0 && e.WriteProtected())
		mapped.add(addr, mode&uffd.Minor != 0 && e.Mapped())
		return nil
	})
	for _, p := range own.runs {
		w.own.Add(p.GetVaddr(), p.GetVaddr()+p.GetNrPages()*image.PageSize, 0)
	}
	r.WriteProtected, r.Mapped = protected.runs, mapped.runs
	if m.watched == nil {
		m.watched = map[int]*watchedPages{}
	}
	m.watched[i] = w
	if mp.Shared && mode&(uffd.Missing|uffd.Minor) != 0 {
		env.Shared.keepZero(mp)
	}
	return err
}

// joinedPages joins pages to runs.
type joinedPages struct {
	runs []*userfaultfd.UserfaultfdPages
}

func (j *joinedPages) add(addr uint64, yes bool) {
	if !yes {
		return
	}
	if n := len(j.runs); n > 0 && j.runs[n-1].GetVaddr()+j.runs[n-1].GetNrPages()*image.PageSize == addr {
		*j.runs[n-1].NrPages++
		return
	}
	j.runs = append(j.runs, &userfaultfd.UserfaultfdPages{Vaddr: proto.Uint64(addr), NrPages: proto.Uint64(1)})
}

// Watched says whether a userfaultfd of the tree watches some of the memory.
func (m *Memory) Watched() bool { return len(m.watched) > 0 }

// ofWatched stores the pages of mapping i, which is watched.
func (w *walker) ofWatched(i int) error {
	mp := &w.m.maps[i]
	if !vma.Private(w.m.entries[i]) {
		return nil
	}
	for s := range w.m.watched[i].own.All() {
		r := pagecopy.Range{Addr: s.Start, Len: s.End - s.Start, KeepZero: true, Force: mp.Prot&unix.PROT_READ == 0}
		if err := w.put(r); err != nil {
			return err
		}
	}
	return nil
}

// write writes what there is to say of them.
func (us *userfaults) write(set image.Creator) error {
	if len(us.list) == 0 {
		return nil
	}
	entries := make([]*userfaultfd.UserfaultfdEntry, len(us.list))
	for i, u := range us.list {
		entries[i] = u.entry
	}
	return image.Write(set, image.Userfaultfd, 0, entries...)
}
