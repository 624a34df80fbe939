package collectors

import (
	"context"

	"cryo/internal/image"
	"cryo/internal/pagecopy"
	"cryo/internal/pagemap"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// MemoryStats counts pages for the statistics of a dump. It may be read at any time.
type MemoryStats struct {
	Private pagecopy.Stats // pages of tasks
	Shared  pagecopy.Stats // pages of shared memory objects
}

// PageDest takes the pages of one object; sinks.Pagemap is one.
type PageDest interface {
	pagecopy.Dest
	Close() error
}

// DumpPages stores the task's own pages: all that is written of its private mappings and not zero. Pages of private
// file mappings that were never written are the file's; holes are not stored at all. If self is nil the task is not made
// to write by itself.
func (m *Memory) DumpPages(ctx context.Context, t *Task, dst PageDest, stats *MemoryStats, self *SelfWriting) (err error) {
	if m.locked { // locked memory is never lazy, and only smaps tells which it is
		if err := m.applyFlags(); err != nil {
			return err
		}
	}
	if err := m.askRings(t, self); err != nil {
		return err
	}
	pid := t.Pid
	if m.copy != nil {
		pid = m.copy.pid
		defer m.copy.close()
	}
	go m.flags() // if that has not begun
	pm, err := pagemap.Open(pid)
	if err != nil {
		return err
	}
	defer pm.Close()
	task := pagecopy.NewTask(pid)
	task.Shared = t.Forked || m.copy != nil // by the task and its copy
	defer task.Close()
	var src pagecopy.Source = task
	workers := pagecopy.Workers()
	if m.copy != nil { // the task runs, and should not have to wait for a processor
		src, workers = copySource{task, m.copy}, pagecopy.WorkersBeside()
	}
	copier := pagecopy.New(ctx, src, dst, workers, &stats.Private)
	if writer := self.writer(task, t); writer != nil && m.copy == nil {
		copier.LetSourceWrite(writer)
	}
	if sender := self.sender(task, t); sender != nil && m.copy == nil {
		defer sender.close()
		copier.LetSourceSend(sender)
	}
	if lender := self.lender(task, t, m.copy); lender != nil {
		copier.LetSourceLend(lender)
	}
	defer func() {
		if cerr := copier.Close(); err == nil {
			err = cerr
		}
	}()
	return m.walk(pm, copier.Put)
}

// DumpAhead stores what Track has listed, of a task that may run again: pages that have gone since are left out. What
// changes meanwhile counts as written for the next set.
func (m *Memory) DumpAhead(ctx context.Context, t *Task, dst PageDest, stats *MemoryStats) (err error) {
	m.ahead = true
	src := t.Pages()
	defer src.Close()
	copier := pagecopy.New(ctx, pagecopy.Running{Task: src, Ended: t.ended}, dst, pagecopy.WorkersBeside(), &stats.Private)
	defer func() {
		if cerr := copier.Close(); err == nil {
			err = cerr
		}
	}()
	return m.walk(nil, copier.Put)
}

// walk puts the ranges to be stored in the order of their addresses, and notes guard regions.
func (m *Memory) walk(pm *pagemap.Map, put func(pagecopy.Range) error) error {
	w := walker{m: m, put: put}
	var err error
	if m.tracking != nil {
		err = m.tracking.replay(&w)
	} else {
		err = m.scan(pm, 0, w.region)
	}
	if last := m.lastScanned(); err == nil && last >= 0 {
		err = w.until(m.maps[last].End)
	}
	return err
}

// largeMapping is the size in bytes from which on an anonymous mapping is scanned by itself.
const largeMapping = 4 << 20

// ShareWith has DumpPages store pages that t shares copy-on-write with its parent, another task that stands still, only there.
// It comes before any page of either is read: to read a shared page from outside (process_vm_readv) is to give the task one of
// its own.
func (m *Memory) ShareWith(t, parent *Task) error {
	s, err := openSharing(t.Pid, parent.Pid)
	if err != nil {
		return err
	}
	defer s.Close()
	pm, err := pagemap.Open(t.Pid)
	if err != nil {
		return err
	}
	defer pm.Close()
	err = m.scan(pm, 0, func(r pagemap.Region) error {
		if r.Categories&pagemap.Guard != 0 {
			return nil
		}
		return s.look(r.Start, r.End)
	})
	m.sharedPages = s.found
	return err
}

// LeaveLate has DumpPages leave the pages in the task that may come late.
func (m *Memory) LeaveLate() { m.leave = true }

// Late lists the pages that DumpPages has left in the task, ascending.
func (m *Memory) Late() []pagecopy.Range { return m.late }

// scan goes over the pages of all mappings that can be scanned; more is what it tells of each besides guard regions. One
// scan over many small mappings costs a third of one a mapping.
func (m *Memory) scan(pm *pagemap.Map, more pagemap.Category, region func(pagemap.Region) error) error {
	last := m.lastScanned()
	for i := 0; i <= last; {
		from, query := i, pagemap.Own
		if m.largeAnonymous(i) {
			i, query = i+1, pagemap.OwnAnonymous
		} else if i++; pagemap.HasScan() {
			for i <= last && !m.largeAnonymous(i) {
				i++
			}
		} else if !m.private(from) {
			continue
		}
		query.Return |= more
		if err := pm.Scan(m.maps[from].Start, m.maps[i-1].End, query, region); err != nil {
			return err
		}
	}
	return nil
}

// lastScanned is the last mapping but the gate area, which lies beyond what a task can map and what can be scanned.
func (m *Memory) lastScanned() int {
	last := len(m.maps) - 1
	for last >= 0 && m.kinds[last] == vma.Vsyscall {
		last--
	}
	return last
}

// largeAnonymous says whether mapping i is large and can have no page of a file.
func (m *Memory) largeAnonymous(i int) bool {
	return m.kinds[i] == vma.Anonymous && m.maps[i].Len() >= largeMapping && m.private(i)
}

// walker lays regions with pages over the mappings.
type walker struct {
	m     *Memory
	next  int  // the first mapping that may reach beyond what came so far
	clean bool // what comes next has not been written since the parent set was made
	put   func(pagecopy.Range) error
}

// region stores what of r belongs to private mappings.
func (w *walker) region(r pagemap.Region) error {
	if r.Categories&pagemap.Guard != 0 {
		w.m.guards = append(w.m.guards, r)
		return nil
	}
	if err := w.until(r.Start); err != nil {
		return err
	}
	for i := w.next; i < len(w.m.maps) && w.m.maps[i].Start < r.End; i++ {
		mp := &w.m.maps[i]
		if err := w.m.beSure(i); err != nil {
			return err
		}
		if !w.m.private(i) && w.m.watched[i] == nil {
			continue
		}
		if w.m.copy.holds(i) || w.m.watched[i] != nil {
			if err := w.until(mp.Start + 1); err != nil {
				return err
			}
			continue
		}
		start, end := max(mp.Start, r.Start), min(mp.End, r.End)
		if err := w.own(i, w.m.pages(i, start, end)); err != nil {
			return err
		}
	}
	return nil
}

// own stores pages of mapping i, or leaves to the parent set what that has of those that are clean. What is clean and
// not there was zero when the parent was made, and is likely to be so still.
func (w *walker) own(i int, r pagecopy.Range) error {
	if !w.clean || w.m.parent == nil {
		return w.store(r)
	}
	for end := r.Addr + r.Len; r.Addr < end; {
		upto, yes, err := w.m.parent.Has(r.Addr, end)
		if err != nil {
			return err
		}
		part, put := r, w.store
		part.Len = upto - r.Addr
		if yes {
			part.Absent, put = true, w.put
			part.Flags |= image.PEParent
		}
		if err := put(part); err != nil {
			return err
		}
		r.Addr = upto
	}
	return nil
}

// store stores pages, or leaves them in the task for now.
func (w *walker) store(r pagecopy.Range) error {
	if w.m.leave && r.Flags&image.PELazy != 0 {
		r.Absent = true
		w.m.late = append(w.m.late, r)
	}
	if r.Absent {
		return w.put(r)
	}
	return w.shared(r)
}

// shared stores of r what is the task's own, and only announces what is its parent's too.
func (w *walker) shared(r pagecopy.Range) error {
	for end := r.Addr + r.Len; r.Addr < end; {
		list := w.m.sharedPages
		for len(list) > 0 && list[0].Addr+list[0].Len <= r.Addr {
			list = list[1:]
		}
		w.m.sharedPages = list
		part := r
		part.Len = end - r.Addr
		if len(list) > 0 && list[0].Addr < end {
			if list[0].Addr <= r.Addr {
				part.Len = min(end, list[0].Addr+list[0].Len) - r.Addr
				part.Absent, part.Flags = true, part.Flags|image.PEShared
			} else {
				part.Len = list[0].Addr - r.Addr
			}
		}
		if err := w.put(part); err != nil {
			return err
		}
		r.Addr += part.Len
	}
	return nil
}

// kept stores what was kept aside of mapping i.
func (w *walker) kept(i int) error {
	if err := w.m.beSure(i); err != nil || !w.m.private(i) {
		return err
	}
	mp := &w.m.maps[i]
	return w.m.copy.within(mp.Start, mp.End, func(r keptRun) error { return w.put(w.m.pages(i, r.addr, r.addr+r.len)) })
}

// pages is the range of pages from start to end of mapping i.
func (m *Memory) pages(i int, start, end uint64) pagecopy.Range {
	mp := &m.maps[i]
	return pagecopy.Range{
		Addr: start, Len: end - start, Flags: m.lazy(i),
		KeepZero: m.keepZero || mp.HasFile() && m.kinds[i] != vma.Anonymous,
		Force:    mp.Prot&unix.PROT_READ == 0 || m.copy.holds(i), // what has been kept aside no task can read by itself
	}
}

// until stores what is stored whole, or has been kept aside, and begins below addr, and gets the mappings that end there out
// of the way.
func (w *walker) until(addr uint64) error {
	for ; w.next < len(w.m.maps); w.next++ {
		mp := &w.m.maps[w.next]
		whole, kept, watched := w.m.whole(w.next), w.m.copy.holds(w.next), w.m.watched[w.next] != nil
		if mp.End > addr && !((whole || kept || watched) && mp.Start < addr) {
			return nil
		}
		if watched {
			if err := w.ofWatched(w.next); err != nil {
				return err
			}
			continue
		}
		if !whole || w.m.ahead {
			if kept {
				if err := w.kept(w.next); err != nil {
					return err
				}
			}
			continue
		}
		// A zero page may be left out of neither: nothing but the image says what is in them.
		r := pagecopy.Range{Addr: mp.Start, Len: mp.Len(), KeepZero: true, Force: mp.Prot&unix.PROT_READ == 0 || kept}
		if err := w.put(r); err != nil {
			return err
		}
	}
	return nil
}

// beSure waits for the flags of mapping i if it may be one that the kernel may drop at any time. These are small; and where
// mappings are many, what is in them is rather stored in vain.
func (m *Memory) beSure(i int) error {
	if m.flagged || m.ahead || m.maps[i].Len() >= largeMapping || m.kinds[i] != vma.Anonymous || len(m.maps) >= manyMappings {
		return nil
	}
	return m.applyFlags()
}

// private says whether mapping i has pages of the task's own.
func (m *Memory) private(i int) bool {
	if m.entries[i] == nil || vma.Is(m.entries[i], vma.StatusVVAR) || m.whole(i) || m.watched[i] != nil {
		return false
	}
	if m.ahead && m.tracking.foreign[i] {
		return false
	}
	// What the kernel may take away at any time need not be kept.
	return vma.Private(m.entries[i]) && m.entries[i].GetFlags()&vma.MapDroppable == 0
}

// whole says whether all of mapping i is stored, whatever the page map says: the kernel owns the pages, but the code of
// the vdso has to stay with those who hold addresses in it, and the events in an AIO ring with their reader.
func (m *Memory) whole(i int) bool {
	return vma.Is(m.entries[i], vma.StatusVDSO) || m.kinds[i] == vma.AIORing
}

// lazy is PELazy for pages that may be brought in after the task goes on.
func (m *Memory) lazy(i int) uint32 {
	if vma.CanBeLazy(m.entries[i]) {
		return image.PELazy
	}
	return 0
}
