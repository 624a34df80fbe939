package restorers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// Level is a step of making descriptors. All tasks have finished a level before one begins the next.
type Level int

// The levels.
const (
	Ready     Level = iota // the tool makes what tasks fetch from it, before there are any
	Open                   // what depends on nothing comes to be, each object in the task that owns it
	Pair                   // what is made out of another object: a pipe opened once more, the other end of a connection
	Fill                   // tasks fetch what others made for them; the tool puts contents in (FilePlan.Fill)
	Attach                 // what goes by final numbers: epoll sets, owners of signals; leftovers are closed
	Watch                  // watches, which nothing of the restore is to trigger: no descriptor is closed any more
	Own                    // owners that are threads: they have to be there
	Late                   // what takes the credentials of its task over: these are the last of its state
	LateWatch              // watches on that
)

func (l Level) String() string {
	return [...]string{"ready", "open", "pair", "fill", "attach", "watch", "own", "late", "late watch"}[l]
}

// Restorer is the restore half of one kind of descriptor.
type Restorer interface {
	// Plan checks an entry of files.img and says how it is made again. It refuses what cannot be restored: nothing
	// has been touched yet. It is called once a file, in the order in which the tree meets them.
	Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error)
}

// Object is one open file description, to be made by the task that owns it: the first in the tree that has it.
type Object interface {
	// Needs lists files that have to be among the owner's descriptors at Attach, whether a task has them or not.
	Needs() []uint32
	// Emit adds what the owner does at a level.
	Emit(lv Level, b *remote.Builder, s *Slots) error
}

// Settler is an Object that decides something when all files are planned.
type Settler interface {
	Settle(p *FilePlanner) error
}

// Homed is an Object that only one task can make, whether it has it in the end or not.
type Homed interface {
	Home() *Table
}

// Parker is an Object that makes descriptors beside those the task is to have.
type Parker interface {
	// Parks is how many of them there are at a time in the owner's table.
	Parks(t *Table) int
}

// File is an open file description of the set.
type File struct {
	ID     uint32
	Entry  *fdinfo.FileEntry
	Owner  *Table // whose task makes it
	Object Object

	At *Table // who has it, once it is made
	FD int    // its number there
}

// FilePlan says who makes which file and who receives it.
type FilePlan struct {
	Tables      []*Table
	ByNode      map[*Node]*Table
	Files       map[uint32]*File
	limits      Limits
	fillers     map[Level][]filler
	late        bool    // something is made at Late
	ttys        *ttySet // nil: there are none
	tuns        []*tunFile
	connections []*inetSocket // of TCP, in repair mode until the tree is let go
	Track       Track         // notes the names of sockets, which are there to stay if the restore succeeds; nil: nobody cares
	userfaults  []*userfault  // which watch nothing before the end
	tool        int           // pid of the tool, as /proc calls it
	lender      int           // of a process with the tool's descriptors, in the tree's namespace
	tree        *Tree
}

// FilePlanner is what restorers plan with.
type FilePlanner struct {
	Set    *Set
	Opt    *FileOptions
	Paths  *Paths
	Tree   *Tree
	plan   *FilePlan
	kinds  map[fdinfo.FdTypes]Restorer
	shared map[any]any
	order  []*File
}

// Shared returns what is kept under key, made when it is asked for the first time: the state that several files of one
// kind have in common.
func Shared[T any](p *FilePlanner, key any, make func() (T, error)) (T, error) {
	if o, ok := p.shared[key]; ok {
		return o.(T), nil
	}
	o, err := make()
	if err == nil {
		p.shared[key] = o
	}
	return o, err
}

// Late says whether there is anything to do at Late and after.
func (p *FilePlan) Late() bool { return p.late }

// hostID is what the tool calls a process that the tasks call id. In the place of one that is not there it is the tool
// itself: where the namespace is the tree's own it has no id in there, and is seen as 0.
func (p *FilePlan) hostID(id int) int {
	if host := p.tree.Host(id); host != 0 {
		return host
	}
	if p.lender == p.tool && unix.Kill(id, 0) != unix.ESRCH && id > 0 {
		return id
	}
	return p.tool
}

// Tables lists the descriptor tables of the tree, in tree order.
func (p *FilePlanner) Tables() []*Table { return p.plan.Tables }

// File is a file that has been planned, nil for others.
func (p *FilePlanner) File(id uint32) *File { return p.plan.Files[id] }

// PlanFiles plans all descriptors of the tree.
func PlanFiles(s *Set, t *Tree, kinds map[fdinfo.FdTypes]Restorer, paths *Paths, opt *FileOptions) (*FilePlan, error) {
	plan := &FilePlan{ByNode: map[*Node]*Table{}, Files: make(map[uint32]*File, len(s.Files)), limits: opt.Limits, tool: opt.ToolPID, lender: opt.Lender, tree: t}
	p := &FilePlanner{Set: s, Opt: opt, Paths: paths, Tree: t, plan: plan, kinds: kinds, shared: map[any]any{}}
	tables := map[uint32]*Table{}
	for _, task := range s.Tasks {
		if task.Dead() {
			continue
		}
		n, id := t.ByPID[task.PID], task.IDs.GetFilesId()
		tab := tables[id]
		if tab == nil {
			tab = newTable(id, n, task.FDs)
			tables[id] = tab
			plan.Tables = append(plan.Tables, tab)
		}
		plan.ByNode[n] = tab
	}
	for _, tab := range plan.Tables {
		for _, f := range tab.finals {
			if err := p.use(tab, f); err != nil {
				return nil, fmt.Errorf("%s: fd %d: %w", tab.Node, f.fd, err)
			}
		}
	}
	return plan, p.settle()
}

// use plans a file when the first table that has it is met.
func (p *FilePlanner) use(tab *Table, f final) error {
	if have := p.plan.Files[f.id]; have != nil {
		if have.Entry.GetType() != f.typ {
			return image.Errorf(image.Fdinfo.File(uint64(tab.ID)), -1, "the type of id %d is %s, that of the file %s", f.id, f.typ, have.Entry.GetType())
		}
		return nil
	}
	if e := p.Set.Files[f.id]; e.GetType() != f.typ {
		return image.Errorf(image.Fdinfo.File(uint64(tab.ID)), -1, "the type of id %d is %s, that of the file %s", f.id, f.typ, e.GetType())
	}
	return p.add(tab, f.id)
}

func (p *FilePlanner) add(owner *Table, id uint32) error {
	e := p.Set.Files[id]
	if e == nil {
		return fmt.Errorf("id %d is no file of the set", id)
	}
	kind := p.kinds[e.GetType()]
	if kind == nil {
		return fmt.Errorf("a descriptor of type %s, which cannot be restored yet", e.GetType())
	}
	o, err := kind.Plan(e, p)
	if err != nil {
		return err
	}
	if err := checkOwner(e); err != nil {
		return err
	}
	if h, ok := o.(Homed); ok {
		owner = h.Home()
	}
	f := &File{ID: id, Entry: e, Owner: owner, Object: o, FD: -1}
	p.plan.Files[id] = f
	p.order = append(p.order, f)
	return nil
}

// settle plans what only other files need, lets objects decide what depends on all, and hands the files to their owners.
func (p *FilePlanner) settle() error {
	for i := 0; i < len(p.order); i++ { // it grows
		f := p.order[i]
		for _, id := range f.Object.Needs() {
			if p.plan.Files[id] == nil {
				if err := p.add(f.Owner, id); err != nil {
					return fmt.Errorf("%s: file %d needs file %d: %w", f.Owner.Node, f.ID, id, err)
				}
			}
		}
	}
	for _, f := range p.order {
		if s, ok := f.Object.(Settler); ok {
			if err := s.Settle(p); err != nil {
				return fmt.Errorf("%s: file %d: %w", f.Owner.Node, f.ID, err)
			}
		}
	}
	for _, f := range p.order {
		f.Owner.owns = append(f.Owner.owns, f)
		for _, id := range f.Object.Needs() {
			if f.Owner.first(id) < 0 && !slices.Contains(f.Owner.borrows, id) {
				f.Owner.borrows = append(f.Owner.borrows, id)
			}
		}
	}
	for _, t := range p.plan.Tables {
		if err := p.plan.limits.check(t, len(p.plan.Tables)); err != nil {
			return fmt.Errorf("%s: %w", t.Node, err)
		}
	}
	return nil
}

// EmitLevel adds what the task of a table does at a level. Levels are emitted in their order, all tables of one before
// the next: the plan follows which number is what in every table.
func (p *FilePlan) EmitLevel(lv Level, t *Table, b *remote.Builder) error {
	s := newSlots(p, t, b)
	if lv == t.begins() {
		b.Grow(2 * len(t.owns))
		// What came with the clone goes. From here on the plan knows every number.
		b.Call(unix.SYS_CLOSE_RANGE, remote.Imm(0), remote.Imm(^uint32(0)), remote.Imm(0)).Must().Discard()
		p.limits.emit(b, t.need(len(p.Tables)))
	}
	switch lv {
	case Fill:
		s.receive()
	case Own:
		return s.owners(true)
	}
	for _, f := range t.owns {
		if err := f.Object.Emit(lv, b, s); err != nil {
			return fmt.Errorf("file %d: %w", f.ID, err)
		}
	}
	if lv == Attach {
		if err := s.owners(false); err != nil {
			return err
		}
		s.closeParked()
	}
	return nil
}

// begins is the first level at which the task of a table does something: a program less for each that only gets what
// others make.
func (t *Table) begins() Level {
	if len(t.owns) == 0 {
		return Fill
	}
	return Open
}

// filler is something the tool does with what the tasks have made, when they are through a level: most after Fill. open
// duplicates a descriptor of the task that has a table into the tool.
type filler interface {
	fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error
}

// after lets the tool do something when all tasks are through a level.
func (p *FilePlan) after(lv Level, f filler) {
	if p.fillers == nil {
		p.fillers = map[Level][]filler{}
	}
	p.fillers[lv] = append(p.fillers[lv], f)
}

// After does what is left to the tool when all tasks are through a level: names for sockets, contents. pid says which
// task has a table, as the tool sees it.
func (p *FilePlan) After(ctx context.Context, lv Level, pid func(*Table) int) error {
	g := &getter{pidfds: map[*Table]int{}, pid: pid}
	defer g.close()
	for _, f := range p.fillers[lv] {
		if err := f.fill(ctx, g.get); err != nil {
			return err
		}
	}
	return nil
}

// getter duplicates descriptors of tasks into the tool (pidfd_getfd, Linux 5.6). Several goroutines may use it.
type getter struct {
	mu     sync.RWMutex // what is in use is not closed
	pidfds map[*Table]int
	pid    func(*Table) int
}

func (g *getter) get(t *Table, fd int) (int, error) {
	g.mu.RLock()
	p, ok := g.pidfds[t]
	if ok {
		defer g.mu.RUnlock()
		return getFD(p, fd)
	}
	g.mu.RUnlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	p, err := g.pidfd(t)
	if err != nil {
		return -1, err
	}
	return getFD(p, fd)
}

func getFD(pidfd, fd int) (int, error) {
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd of fd %d: %w", fd, err)
	}
	return own, nil
}

// pidfd opens the task that has a table, once.
func (g *getter) pidfd(t *Table) (int, error) {
	if p, ok := g.pidfds[t]; ok {
		return p, nil
	}
	if len(g.pidfds) >= maxPidfds {
		g.close()
	}
	p, err := unix.PidfdOpen(g.pid(t), 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	g.pidfds[t] = p
	return p, nil
}

// maxPidfds is how many tasks are kept open at a time.
const maxPidfds = 64

func (g *getter) close() {
	for _, fd := range g.pidfds {
		unix.Close(fd)
	}
	clear(g.pidfds)
}

// Limits are how many descriptors a task may have while it is being restored.
type Limits struct {
	Soft, Hard uint64 // RLIMIT_NOFILE of the tool
	Max        uint64 // fs.nr_open
	MayRaise   bool   // the tool has CAP_SYS_RESOURCE
}

// maxNumbers bounds what is kept of a table: far above what a kernel allows by default.
const maxNumbers = 1 << 26

// scratch is how many numbers a program uses at a time beside those that are planned.
const scratch = 16

// need is how many numbers a table takes while it is filled.
func (t *Table) need(tables int) uint64 {
	n := min(tables, len(t.finals)) + len(t.borrows) + scratch // a pidfd of each task to fetch from
	for _, f := range t.owns {
		if p, ok := f.Object.(Parker); ok {
			n += p.Parks(t)
		}
	}
	if len(t.finals) > 0 {
		n += t.finals[len(t.finals)-1].fd + 1
	}
	return uint64(n)
}

// check refuses a table that cannot be made under the limits. The zero value has none.
func (l Limits) check(t *Table, tables int) error {
	n := t.need(tables)
	switch {
	case n > maxNumbers:
		return fmt.Errorf("descriptors up to %d are more than can be restored", t.finals[len(t.finals)-1].fd)
	case l.Hard == 0 || n <= l.Hard:
		return nil
	case n > l.Max:
		return fmt.Errorf("descriptors up to %d need fs.nr_open to be at least %d, it is %d", t.finals[len(t.finals)-1].fd, n, l.Max)
	case !l.MayRaise:
		return fmt.Errorf("descriptors up to %d need a limit (ulimit -n) of at least %d, it is %d and CAP_SYS_RESOURCE is missing to raise it",
			t.finals[len(t.finals)-1].fd, n, l.Hard)
	}
	return nil
}

func (l Limits) emit(b *remote.Builder, n uint64) {
	if l.Hard != 0 && n > l.Soft {
		lim := b.Bytes(quads(n, max(n, l.Hard)))
		b.Call(unix.SYS_PRLIMIT64, remote.Imm(0), remote.Imm(unix.RLIMIT_NOFILE), lim, remote.Imm(0)).Must().Discard()
	}
}

// byNumber orders descriptors.
func byNumber(a, b final) int { return cmp.Compare(a.fd, b.fd) }
