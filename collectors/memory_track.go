package collectors

import (
	"cmp"

	"cryo/internal/dirty"
	"cryo/internal/pagemap"
	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// Tracking is what is known of the pages of one task since the last set of images: the list of those it has, made while
// it stood still, and which of them the parent set still holds.
type Tracking struct {
	runs    dirty.Runs
	foreign []bool       // by mapping: a userfaultfd of somebody else watches it, so what it says about its pages is not for us
	fresh   []bool       // by mapping: it was not followed before
	stale   []dirty.Span // see dirty.Tracker.Arm
}

// Flags of runs.
const (
	runClean = 1 << iota // not written since the parent set was made
	runGuard
)

// Follow comes before Track: tr follows the mappings of the task, which stands still; without more only those it follows
// already. It is the last that changes anything of them, so smaps may be read beside what comes then. The error is
// dirty.ErrGone if tr is of another address space than the task has now. tr is nil if nobody follows the task.
func (m *Memory) Follow(t *Task, tr *dirty.Tracker, more bool) error {
	m.tracking = &Tracking{foreign: make([]bool, len(m.maps)), fresh: make([]bool, len(m.maps))}
	if tr == nil {
		return nil
	}
	pm, err := pagemap.Open(t.Pid)
	if err != nil {
		return err
	}
	defer pm.Close()
	taken, err := tr.Take(pm, m.trackable(), more)
	m.mark(taken.Theirs, m.tracking.foreign)
	m.mark(taken.Fresh, m.tracking.fresh)
	return err
}

// mark marks the mappings that are spans.
func (m *Memory) mark(spans []dirty.Span, marks []bool) {
	for i := range m.maps {
		if len(spans) > 0 && spans[0].Start == m.maps[i].Start {
			marks[i], spans = true, spans[1:]
		}
	}
}

// Track lists the pages of the task, which stands still. With since, tr has followed it since the parent set was made:
// clean pages are left to that.
func (m *Memory) Track(t *Task, tr *dirty.Tracker, since bool) error {
	pm, err := pagemap.Open(t.Pid)
	if err != nil {
		return err
	}
	defer pm.Close()
	l := &lister{Tracking: m.tracking, m: m, tr: tr, since: since && !m.has(vma.AIORing), old: make([]bool, len(m.maps))}
	var more pagemap.Category
	if tr != nil {
		more = tr.Categories()
	}
	if err := m.scan(pm, more, l.region); err != nil {
		return err
	}
	for i, old := range l.old {
		if old {
			l.stale = append(l.stale, m.span(i))
		}
	}
	return nil
}

// Arm begins a new period of what tr follows. It comes after Track of all tasks: some may share their memory.
//
// What a userfaultfd of the program's own watches is left to the dump that follows a pre-dump: the tasks run when pages are
// read, and one that has gone meanwhile must not be asked for.
func (m *Memory) Arm(t *Task, tr *dirty.Tracker) error {
	pm, err := pagemap.Open(t.Pid)
	if err != nil {
		return err
	}
	defer pm.Close()
	return tr.Arm(pm, m.trackable(), m.tracking.stale)
}

// SetParent says what the parent set has of the task; it is closed by the caller when the pages are stored. nil is
// nothing.
func (m *Memory) SetParent(p ParentPages) {
	m.parent = p
	m.keepZero = m.keepZero || p == ParentElsewhere
}

// lister fills a Tracking from a scan.
type lister struct {
	*Tracking
	m     *Memory
	tr    *dirty.Tracker
	since bool
	next  int    // the first mapping that may reach beyond what came so far
	old   []bool // by mapping: has pages with marks of another time
}

// region takes what the scan found. It is cut at the ends of mappings, because not all are judged alike.
func (l *lister) region(r pagemap.Region) error {
	if r.Categories&pagemap.Guard != 0 {
		l.runs.Add(r.Start, r.End, runGuard)
		return nil
	}
	for l.next < len(l.m.maps) && l.m.maps[l.next].End <= r.Start {
		l.next++
	}
	for i := l.next; i < len(l.m.maps) && l.m.maps[i].Start < r.End; i++ {
		mp := &l.m.maps[i]
		if !l.m.private(i) {
			continue
		}
		flags := uint64(0)
		switch clean := l.tr != nil && !l.foreign[i] && l.tr.Clean(r.Categories, mp.HasFile() && !l.fresh[i]); {
		case clean && l.fresh[i]:
			l.old[i] = true
		case clean && l.since:
			flags = runClean
		}
		l.runs.Add(max(mp.Start, r.Start), min(mp.End, r.End), flags)
	}
	return nil
}

// replay puts the listed pages in order, as a scan would.
func (k *Tracking) replay(w *walker) error {
	for s, flags := range k.runs.All() {
		r := pagemap.Region{Start: s.Start, End: s.End}
		if flags&runGuard != 0 {
			r.Categories = pagemap.Guard
		}
		w.clean = flags&runClean != 0
		if err := w.region(r); err != nil {
			return err
		}
	}
	w.clean = false
	return nil
}

func (m *Memory) span(i int) dirty.Span {
	return dirty.Span{Start: m.maps[i].Start, End: m.maps[i].End}
}

func (m *Memory) has(kind vma.Kind) bool {
	for _, k := range m.kinds {
		if k == kind {
			return true
		}
	}
	return false
}

// trackable lists the mappings whose pages are to be followed. A task with rings for asynchronous I/O is not: devices
// write to its memory without its page tables noticing.
func (m *Memory) trackable() []dirty.Span {
	if m.has(vma.AIORing) {
		return nil
	}
	var spans []dirty.Span
	for i := range m.maps {
		if m.private(i) && !m.tracking.foreign[i] {
			spans = append(spans, m.span(i))
		}
	}
	return spans
}

// NewTrackers makes trackers of tasks that stand still; the caller is on the thread that traces them. Tasks without an
// engine get one, which the caller takes out. Where a task cannot be followed the error says why.
func NewTrackers(tasks []*Task) (trackers []*dirty.Tracker, errs []error) {
	trackers, errs = make([]*dirty.Tracker, len(tasks)), make([]error, len(tasks))
	if dirty.Kernel() == dirty.SoftDirty {
		for i, t := range tasks {
			trackers[i] = dirty.NewSoftDirty(t.Pid)
		}
		return trackers, errs
	}
	enter(tasks, errs)
	made := make([]remote.Op, len(tasks))
	results := runAll(tasks, errs, func(i int) *remote.Program {
		b := remote.NewBuilder("make a userfaultfd")
		made[i] = b.Call(unix.SYS_USERFAULTFD, remote.Imm(dirty.UffdFlags)).Must()
		tasks[i].Session.Lend(b, made[i])
		return b.Program()
	})
	theirs, fds, missed := make([]int64, len(tasks)), make([]int, len(tasks)), make([]error, len(tasks))
	for i, t := range tasks {
		fds[i] = -1
		if errs[i] == nil {
			theirs[i], errs[i] = results[i].Value(made[i])
		}
		if errs[i] == nil {
			fds[i], missed[i] = t.getFD(int(theirs[i]))
		}
	}
	runAll(tasks, errs, func(i int) *remote.Program {
		b := remote.NewBuilder("close the userfaultfd")
		tasks[i].Session.TakeBack(b, theirs[i])
		return b.Program()
	})
	for i, t := range tasks {
		switch errs[i] = cmp.Or(errs[i], missed[i]); {
		case errs[i] == nil:
			trackers[i], errs[i] = dirty.NewWriteProtect(t.Pid, fds[i])
		case fds[i] >= 0:
			unix.Close(fds[i])
		}
	}
	return trackers, errs
}

// enter puts the engine into those of the tasks that have none, all at the same time.
func enter(tasks []*Task, errs []error) {
	var entering []int
	var leaders []*remote.Thread
	var options []remote.Options
	for i, t := range tasks {
		if t.Session != nil {
			continue
		}
		leader, err := remote.Capture(t.Pid)
		if errs[i] = err; err == nil {
			entering, leaders = append(entering, i), append(leaders, leader)
			options = append(options, remote.Options{Status: t.Status})
		}
	}
	sessions, failed := remote.InjectAll(leaders, options)
	for n, i := range entering {
		tasks[i].Session, errs[i] = sessions[n], failed[n]
	}
}

// runAll runs a program in each of the tasks that had no error so far, in all at the same time.
func runAll(tasks []*Task, errs []error, program func(i int) *remote.Program) []*remote.Results {
	results, started := make([]*remote.Results, len(tasks)), make([]bool, len(tasks))
	for i, t := range tasks {
		if errs[i] == nil {
			errs[i] = t.Session.Start(program(i))
			started[i] = errs[i] == nil
		}
	}
	for i, t := range tasks {
		if started[i] {
			results[i], errs[i] = t.Session.Finish()
		}
	}
	return results
}
