package restorers

import (
	"fmt"
	"slices"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"golang.org/x/sys/unix"
)

// Level is a step in making files. All tasks finish a level before one begins the next.
type Level int

// The levels.
const (
	Open   Level = iota // objects come to be: open, pipe2, socket
	Pair                // what needs another of them: second ends, connections
	Fill                // data go in; the tool does this, not the tasks
	Attach              // every task gets the descriptors others opened for it
	Own                 // who gets signals of them: needs all threads to be there
)

func (l Level) String() string { return [...]string{"open", "pair", "fill", "attach", "own"}[l] }

// Restorer makes open files of one type again.
type Restorer interface {
	// Plan checks a file of the set and says how it is made. One object may stand for several files (the ends of a
	// pipe): Plan then returns it again for each of them.
	Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error)
}

// Object is one kernel object behind one or more files.
type Object interface {
	// Emit adds what the owner does at a level: the first task in the tree that uses one of the object's files.
	Emit(lv Level, b *remote.Builder, s *Slots) error
}

// Filler is an Object that the tool puts data into.
type Filler interface {
	Fill(s *Slots) error
}

// Table is a descriptor table: of one task, or of several that share it.
type Table struct {
	ID   uint32
	Node *Node // the first task that uses it; it makes the files
	FDs  []*fdinfo.FdinfoEntry

	Objects []Object // that it makes, in the order of their first use
	Temps   []int    // descriptors to be closed after Attach
	temp    int      // next free number for them
}

// File is an open file description to be made.
type File struct {
	ID    uint32
	Entry *fdinfo.FileEntry
	Owner *Table
	Home  int // its descriptor in the owner's table
	own   *fown.FownEntry
}

// FilePlan says who makes which file and who receives it.
type FilePlan struct {
	Tables []*Table
	ByNode map[*Node]*Table
	Files  map[uint32]*File
}

// FilePlanner is what restorers plan with.
type FilePlanner struct {
	Set    *Set
	Opt    *FileOptions
	plan   *FilePlan
	shared map[any]Object
	paths  *Paths
}

// Shared returns the object kept under key, made by make when it is asked for the first time.
func (p *FilePlanner) Shared(key any, make func() Object) Object {
	if o, ok := p.shared[key]; ok {
		return o
	}
	o := make()
	p.shared[key] = o
	return o
}

// Paths finds files by name.
func (p *FilePlanner) Paths() *Paths { return p.paths }

// PlanFiles plans all descriptors of the tree.
func PlanFiles(s *Set, t *Tree, kinds map[fdinfo.FdTypes]Restorer, paths *Paths, opt *FileOptions) (*FilePlan, error) {
	p := &FilePlanner{Set: s, Opt: opt, plan: &FilePlan{ByNode: map[*Node]*Table{}, Files: map[uint32]*File{}}, shared: map[any]Object{}, paths: paths}
	tables := map[uint32]*Table{}
	for _, task := range s.Tasks {
		if task.Dead() {
			continue
		}
		n, id := t.ByPID[task.PID], task.IDs.GetFilesId()
		tab := tables[id]
		if tab == nil {
			tab = &Table{ID: id, Node: n, FDs: slices.Clone(task.FDs)}
			slices.SortFunc(tab.FDs, func(a, b *fdinfo.FdinfoEntry) int { return int(a.GetFd()) - int(b.GetFd()) })
			tables[id] = tab
			p.plan.Tables = append(p.plan.Tables, tab)
		}
		p.plan.ByNode[n] = tab
	}
	top := 0
	for _, tab := range p.plan.Tables {
		for _, f := range tab.FDs {
			top = max(top, int(f.GetFd()))
		}
	}
	for _, tab := range p.plan.Tables {
		tab.temp = top + 1
		for _, f := range tab.FDs {
			if err := p.use(tab, f, kinds); err != nil {
				return nil, err
			}
		}
	}
	p.plan.homes()
	return p.plan, nil
}

// use notes that tab has a descriptor of a file, and plans the file when it is met first.
func (p *FilePlanner) use(tab *Table, f *fdinfo.FdinfoEntry, kinds map[fdinfo.FdTypes]Restorer) error {
	if have := p.plan.Files[f.GetId()]; have != nil {
		if have.Owner == tab && have.Home < 0 {
			have.Home = int(f.GetFd())
		}
		return nil
	}
	e := p.Set.Files[f.GetId()]
	if e.GetType() != f.GetType() {
		return image.Errorf(image.Fdinfo.File(uint64(tab.ID)), 0, "fd %d is of type %s, file %d of type %s", f.GetFd(), f.GetType(), e.GetId(), e.GetType())
	}
	kind := kinds[e.GetType()]
	if kind == nil {
		return fmt.Errorf("%s: fd %d: files of type %s are not built yet", tab.Node, f.GetFd(), e.GetType())
	}
	file := &File{ID: e.GetId(), Entry: e, Owner: tab, Home: int(f.GetFd()), own: fownOf(e)}
	p.plan.Files[e.GetId()] = file
	obj, err := kind.Plan(e, p)
	if err != nil {
		return fmt.Errorf("%s: fd %d: %w", tab.Node, f.GetFd(), err)
	}
	for _, other := range p.plan.Tables {
		if i := slices.Index(other.Objects, obj); i >= 0 {
			// An end of something that another task makes: it lives there too.
			if other != tab {
				file.Owner, file.Home = other, -1
			}
			return nil
		}
	}
	tab.Objects = append(tab.Objects, obj)
	return nil
}

// homes gives a number to every file that its owner keeps for others only.
func (p *FilePlan) homes() {
	for _, f := range p.Files {
		if f.Home < 0 {
			f.Home = f.Owner.Temp()
		}
	}
}

// Temp takes a descriptor number that no task of the tree uses.
func (t *Table) Temp() int {
	t.temp++
	t.Temps = append(t.Temps, t.temp-1)
	return t.temp - 1
}

// Slots is what an object sees of the descriptors of its owner.
type Slots struct {
	Plan  *FilePlan
	Table *Table
	PID   int // of the owner, as the tool sees it
}

// Home is the descriptor that a file of the owner has.
func (s *Slots) Home(id uint32) int { return s.Plan.Files[id].Home }

// Uses says whether any task has a descriptor of the file.
func (s *Slots) Uses(id uint32) bool { return s.Plan.Files[id] != nil }

// Place moves a fresh descriptor to the home of a file and sets close-on-exec there as it is to be.
func (s *Slots) Place(b *remote.Builder, id uint32, fd remote.Arg) {
	f := s.Plan.Files[id]
	place(b, fd, f.Home, s.cloexec(f))
}

// cloexec is the O_CLOEXEC flag of the descriptor at a file's home.
func (s *Slots) cloexec(f *File) int {
	for _, d := range f.Owner.FDs {
		if int(d.GetFd()) == f.Home {
			return cloexecOf(d)
		}
	}
	return unix.O_CLOEXEC
}

func cloexecOf(d *fdinfo.FdinfoEntry) int {
	if d.GetFlags()&unix.FD_CLOEXEC != 0 {
		return unix.O_CLOEXEC
	}
	return 0
}

// place moves descriptor fd, which is whatever number was free, to the number at. The descriptor was opened with
// O_CLOEXEC.
func place(b *remote.Builder, fd remote.Arg, at, cloexec int) {
	there, done := b.NewLabel(), b.NewLabel()
	b.JumpIf(fd, remote.Eq, remote.Imm(at), there)
	b.Call(unix.SYS_DUP3, fd, remote.Imm(at), remote.Imm(cloexec)).Must().Discard()
	b.Call(unix.SYS_CLOSE, fd).Must().Discard()
	b.Jump(done)
	b.Label(there)
	if cloexec == 0 {
		b.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_SETFD), remote.Imm(0)).Must().Discard()
	}
	b.Label(done)
}

// EmitLevel adds what a table's owner does at a level.
func (p *FilePlan) EmitLevel(lv Level, t *Table, b *remote.Builder) error {
	s := &Slots{Plan: p, Table: t}
	switch lv {
	case Attach:
		return p.attach(t, b)
	case Own:
		return p.owners(t, b)
	}
	for _, o := range t.Objects {
		if err := o.Emit(lv, b, s); err != nil {
			return fmt.Errorf("%s: %w", t.Node, err)
		}
	}
	return nil
}

// Fill lets the tool put data into a table's objects. pid is the owner's, as the tool sees it.
func (p *FilePlan) Fill(t *Table, pid int) error {
	s := &Slots{Plan: p, Table: t, PID: pid}
	for _, o := range t.Objects {
		if f, ok := o.(Filler); ok {
			if err := f.Fill(s); err != nil {
				return fmt.Errorf("%s: %w", t.Node, err)
			}
		}
	}
	return nil
}

// attach gives a table the descriptors of files that are elsewhere: duplicates of its own and of other tasks'.
func (p *FilePlan) attach(t *Table, b *remote.Builder) error {
	pidfds := map[*Table]remote.Op{}
	for _, d := range t.FDs {
		f := p.Files[d.GetId()]
		at := int(d.GetFd())
		switch {
		case f.Owner == t && f.Home == at:
		case f.Owner == t:
			b.Call(unix.SYS_DUP3, remote.Imm(f.Home), remote.Imm(at), remote.Imm(cloexecOf(d))).Must().Discard()
		default:
			pidfd, ok := pidfds[f.Owner]
			if !ok {
				// Not below the numbers of the table: it is there while they are filled.
				low := b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(f.Owner.Node.ID), remote.Imm(0)).Must()
				pidfd = b.Call(unix.SYS_FCNTL, low, remote.Imm(unix.F_DUPFD_CLOEXEC), remote.Imm(t.temp)).Must()
				b.Call(unix.SYS_CLOSE, low).Must().Discard()
				pidfds[f.Owner] = pidfd
			}
			fd := b.Call(unix.SYS_PIDFD_GETFD, pidfd, remote.Imm(f.Home), remote.Imm(0)).Must()
			place(b, fd, at, cloexecOf(d))
		}
	}
	for _, fd := range pidfds {
		b.Call(unix.SYS_CLOSE, fd).Must().Discard()
	}
	return nil
}

// EmitCleanup closes what a table kept for others. It follows Attach of all tasks.
func (t *Table) EmitCleanup(b *remote.Builder) {
	for _, fd := range t.Temps {
		b.Call(unix.SYS_CLOSE, remote.Imm(fd)).Must().Discard()
	}
}

// owners sets who gets the signals of a table's files, in the name of the user who asked for them.
func (p *FilePlan) owners(t *Table, b *remote.Builder) error {
	done := map[uint32]bool{}
	for _, d := range t.FDs {
		f := p.Files[d.GetId()]
		if f.own == nil || f.own.GetPid() == 0 || done[f.ID] || p.firstUser(f) != t {
			continue
		}
		done[f.ID] = true
		if err := emitOwner(b, int(d.GetFd()), f.own); err != nil {
			return fmt.Errorf("%s: fd %d: %w", t.Node, d.GetFd(), err)
		}
	}
	return nil
}

// firstUser is the first table that has a descriptor of the file at the end.
func (p *FilePlan) firstUser(f *File) *Table {
	for _, t := range p.Tables {
		for _, d := range t.FDs {
			if d.GetId() == f.ID {
				return t
			}
		}
	}
	return nil
}
