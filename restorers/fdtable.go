package restorers

import (
	"fmt"
	"slices"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// Table is a descriptor table: of one task, or of several that share it.
//
// It is emptied before the first file is opened. As the kernel always gives out the lowest free number, the plan can
// follow what every number is without asking: an open that is to become descriptor 3 while 0 to 2 are taken is one call,
// checked by the number it returns. What comes out elsewhere is moved by dup3 and close.
type Table struct {
	ID   uint32
	Node *Node // the first task that uses it; it makes the files

	finals  []final        // what there is to be, by number
	firsts  map[uint32]int // index into finals of a file's lowest number
	owns    []*File        // files this task makes, in the order they are met
	borrows []uint32       // files needed at Attach that the task is not to keep

	used   numbers
	low    int            // nothing below is free
	spare  int            // nothing below may be used for parking
	extra  map[uint32]int // the number of each file that is there, but not to be kept
	parked []int          // to be closed at Attach
}

// numbers is a set of small numbers.
type numbers []uint64

func (b numbers) has(n int) bool { return n>>6 < len(b) && b[n>>6]&(1<<(n&63)) != 0 }

func (b *numbers) set(n int) {
	if more := n>>6 + 1 - len(*b); more > 0 {
		*b = append(*b, make([]uint64, more)...)
	}
	(*b)[n>>6] |= 1 << (n & 63)
}

func (b numbers) clear(n int) { b[n>>6] &^= 1 << (n & 63) }

// final is one descriptor as it is to be in the end.
type final struct {
	fd      int
	id      uint32
	cloexec int // O_CLOEXEC or 0
	typ     fdinfo.FdTypes
	next    int  // index of the file's next number, 0: none
	there   bool // set on the file's first number when the task has the file
}

func newTable(id uint32, n *Node, fds []*fdinfo.FdinfoEntry) *Table {
	t := &Table{ID: id, Node: n, finals: make([]final, 0, len(fds)), firsts: make(map[uint32]int, len(fds)), extra: map[uint32]int{}}
	for _, f := range fds {
		w := final{fd: int(f.GetFd()), id: f.GetId(), typ: f.GetType()}
		if f.GetFlags()&unix.FD_CLOEXEC != 0 {
			w.cloexec = unix.O_CLOEXEC
		}
		t.finals = append(t.finals, w)
	}
	slices.SortFunc(t.finals, byNumber)
	for i, f := range slices.Backward(t.finals) {
		t.finals[i].next = t.firsts[f.id]
		t.firsts[f.id] = i
	}
	return t
}

// first is the lowest number a file has in the end, -1 if the table has it not.
func (t *Table) first(id uint32) int {
	if i, ok := t.firsts[id]; ok {
		return t.finals[i].fd
	}
	return -1
}

// Has says whether the file has that number in the end.
func (t *Table) Has(fd int, id uint32) bool {
	i, ok := slices.BinarySearchFunc(t.finals, final{fd: fd}, byNumber)
	return ok && t.finals[i].id == id
}

// isFinal says whether a number is one of those in the end.
func (t *Table) isFinal(fd int) bool {
	_, ok := slices.BinarySearchFunc(t.finals, final{fd: fd}, byNumber)
	return ok
}

// take is the number the kernel gives out next.
func (t *Table) take() int {
	for t.used.has(t.low) {
		t.low++
	}
	t.used.set(t.low)
	return t.low
}

func (t *Table) release(fd int) {
	t.used.clear(fd)
	t.low = min(t.low, fd)
}

// park is a number that nothing else wants; it is closed at Attach.
func (t *Table) park() int {
	for t.used.has(t.spare) || t.isFinal(t.spare) {
		t.spare++
	}
	t.used.set(t.spare)
	t.parked = append(t.parked, t.spare)
	return t.spare
}

// Slots is what an object sees of descriptor tables while a program is written for one of them.
type Slots struct {
	*pool
	plan *FilePlan
	t    *Table
	tool *int // number of a pidfd of the tool
}

func newSlots(p *FilePlan, t *Table, b *remote.Builder) *Slots {
	return &Slots{pool: newPool(b), plan: p, t: t}
}

// pool is constant memory of a program, each piece one for all its users.
type pool struct {
	b     *remote.Builder
	paths map[string]remote.Ref
	hows  map[int]remote.Ref
	pair  *remote.Ref
}

func newPool(b *remote.Builder) *pool {
	return &pool{b: b, paths: map[string]remote.Ref{}, hows: map[int]remote.Ref{}}
}

// path is a path in program memory.
func (p *pool) path(s string) remote.Ref {
	r, ok := p.paths[s]
	if !ok {
		r = p.b.String(s)
		p.paths[s] = r
	}
	return r
}

// twoNumbers is where calls that make two descriptors say which, for nobody to read.
func (p *pool) twoNumbers() remote.Ref {
	if p.pair == nil {
		r := p.b.Zero(8)
		p.pair = &r
	}
	return *p.pair
}

// how is a struct open_how in program memory.
func (p *pool) how(flags int) remote.Ref {
	r, ok := p.hows[flags]
	if !ok {
		r = p.b.Bytes(words(uint64(flags), 0, unix.RESOLVE_NO_SYMLINKS))
		p.hows[flags] = r
	}
	return r
}

// Cloexec is the flag to open a file with: O_CLOEXEC, or 0 where its first descriptor is to go without.
func (s *Slots) Cloexec(id uint32) int {
	if i, ok := s.t.firsts[id]; ok {
		return s.t.finals[i].cloexec
	}
	return unix.O_CLOEXEC
}

// Number is the descriptor that a file has in the task now, -1 if it is not there.
func (s *Slots) Number(id uint32) int {
	if i, ok := s.t.firsts[id]; ok && s.t.finals[i].there {
		return s.t.finals[i].fd
	}
	if n, ok := s.t.extra[id]; ok {
		return n
	}
	return -1
}

// Wanted says whether any task has the file in the end.
func (s *Slots) Wanted(id uint32) bool { return s.plan.Files[id] != nil }

// Unmake closes all numbers of a file, to make another in its place.
func (s *Slots) Unmake(id uint32) {
	first := s.t.firsts[id]
	for i := first; ; {
		s.Close(s.t.finals[i].fd)
		if i = s.t.finals[i].next; i == 0 {
			break
		}
	}
	s.t.finals[first].there = false
}

// Late says whether a number is that of a file that is made at Late.
func (s *Slots) Late(fd int) bool {
	i, ok := slices.BinarySearchFunc(s.t.finals, final{fd: fd}, byNumber)
	if !ok || s.plan.Files[s.t.finals[i].id] == nil {
		return false
	}
	r, ok := s.plan.Files[s.t.finals[i].id].Object.(*ioURing)
	return ok && r.late()
}

// Made says that the call op has made the file, with O_CLOEXEC or 0, at the lowest free number. It goes to all the
// numbers the task is to have it at; a file that only other tasks have is kept for them until Attach.
func (s *Slots) Made(op remote.Op, id uint32, cloexec int) {
	n := s.t.take()
	op.Expect(uint64(n))
	s.place(arrival{n, id, cloexec})
}

// MadePair is Made for a call that makes two files at once and returns their numbers in memory. It returns the numbers
// they have now; id 0 stands for a file that no task has, it is kept until Attach.
func (s *Slots) MadePair(op remote.Op, ids [2]uint32, cloexec int) [2]int {
	op.Must().Discard()
	a := [2]arrival{{s.t.take(), ids[0], cloexec}, {s.t.take(), ids[1], cloexec}}
	return [2]int{s.place(a[0], &a[1]), s.place(a[1])}
}

// Keep says that the call op has made a descriptor that is needed until Attach, and returns its number.
func (s *Slots) Keep(op remote.Op) int {
	n := s.t.take()
	op.Expect(uint64(n))
	return s.place(arrival{n: n, cloexec: unix.O_CLOEXEC})
}

// Temp says that the call op has made a descriptor for the moment; Close ends it.
func (s *Slots) Temp(op remote.Op) int {
	n := s.t.take()
	op.Expect(uint64(n))
	return n
}

// Close closes a descriptor.
func (s *Slots) Close(n int) {
	s.b.CallNumbers(unix.SYS_CLOSE, uint64(n)).Must().Discard()
	s.t.release(n)
}

// arrival is a descriptor at the number the kernel chose.
type arrival struct {
	n       int
	id      uint32
	cloexec int
}

// place moves a fresh descriptor to where it is wanted and returns its (first) number. Others that have just arrived
// make way for it.
func (s *Slots) place(a arrival, others ...*arrival) int {
	first, wanted := s.t.firsts[a.id]
	if a.id == 0 || !wanted {
		return s.parkArrival(a)
	}
	stays := false
	for i := first; ; {
		f := &s.t.finals[i]
		if f.fd == a.n {
			stays = true
			if f.cloexec != a.cloexec {
				s.b.CallNumbers(unix.SYS_FCNTL, uint64(a.n), unix.F_SETFD, uint64(f.cloexec/unix.O_CLOEXEC)).Must().Discard()
			}
		} else {
			s.copyTo(a.n, f, others)
		}
		if i = f.next; i == 0 {
			break
		}
	}
	if !stays {
		s.Close(a.n)
	}
	n := s.t.finals[first].fd
	s.t.finals[first].there = true
	s.arrived(a.id, n)
	return n
}

// copyTo makes one more of the descriptors a file is to have.
func (s *Slots) copyTo(n int, f *final, others []*arrival) {
	for _, o := range others {
		if o.n == f.fd {
			s.makeWay(o)
		}
	}
	s.b.CallNumbers(unix.SYS_DUP3, uint64(n), uint64(f.fd), uint64(f.cloexec)).Must().Discard()
	s.t.used.set(f.fd)
}

// makeWay moves a descriptor to the next free number.
func (s *Slots) makeWay(o *arrival) {
	n := s.t.take()
	s.b.CallNumbers(unix.SYS_FCNTL, uint64(o.n), unix.F_DUPFD_CLOEXEC, 0).Expect(uint64(n))
	s.Close(o.n)
	o.n, o.cloexec = n, unix.O_CLOEXEC
}

func (s *Slots) parkArrival(a arrival) int {
	n := a.n
	if s.t.isFinal(n) {
		n = s.t.park()
		s.b.CallNumbers(unix.SYS_DUP3, uint64(a.n), uint64(n), unix.O_CLOEXEC).Must().Discard()
		s.Close(a.n)
	} else {
		s.t.parked = append(s.t.parked, n)
	}
	if a.id != 0 {
		s.t.extra[a.id] = n
		s.arrived(a.id, n)
	}
	return n
}

func (s *Slots) arrived(id uint32, n int) {
	if f := s.plan.Files[id]; f != nil && f.At == nil {
		f.At, f.FD = s.t, n
	}
}

// Reopen opens a file once more that a task has made, wherever it is, and returns the call.
func (s *Slots) Reopen(pid, fd, flags int) remote.Op {
	return s.b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), s.path(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)), remote.Imm(flags), remote.Imm(0))
}

// FromTool gives the task a descriptor of the tool as it is: both share the open file description then.
func (s *Slots) FromTool(fd int, id uint32) {
	if s.tool == nil {
		n := s.Keep(s.b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(s.plan.lender), remote.Imm(0)))
		s.tool = &n
	}
	s.Made(s.b.Call(unix.SYS_PIDFD_GETFD, remote.Imm(*s.tool), remote.Imm(fd), remote.Imm(0)), id, unix.O_CLOEXEC)
}

// source is a task to fetch descriptors from.
type source struct {
	pidfd int // its number in the table that fetches
	left  int // descriptors yet to be fetched
}

// receive fetches what other tasks made: by pidfd_getfd (Linux 5.6), in the order of numbers, so that most are in place
// at once.
func (s *Slots) receive() {
	ids := s.missing()
	from := map[*Table]*source{}
	for _, id := range ids {
		at := s.plan.Files[id].At
		if from[at] == nil {
			from[at] = &source{pidfd: -1}
		}
		from[at].left++
	}
	for _, id := range ids {
		f := s.plan.Files[id]
		src := from[f.At]
		if src.pidfd < 0 {
			src.pidfd = s.Keep(s.b.Call(unix.SYS_PIDFD_OPEN, remote.Imm(f.At.Node.ID), remote.Imm(0)))
		}
		s.Made(s.b.CallNumbers(unix.SYS_PIDFD_GETFD, uint64(src.pidfd), uint64(f.FD), 0), id, unix.O_CLOEXEC)
		if src.left--; src.left == 0 {
			s.drop(src.pidfd)
		}
	}
}

// missing lists the files that the task is to have and has not yet.
func (s *Slots) missing() []uint32 {
	var ids []uint32
	for i := range s.t.finals {
		if f := &s.t.finals[i]; s.t.firsts[f.id] == i && !f.there {
			ids = append(ids, f.id)
		}
	}
	for _, id := range s.t.borrows {
		if s.Number(id) < 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// drop closes a kept descriptor before its time.
func (s *Slots) drop(n int) {
	s.Close(n)
	s.t.parked = slices.DeleteFunc(s.t.parked, func(p int) bool { return p == n })
	s.t.spare = min(s.t.spare, n)
}

// closeParked closes what was kept for others.
func (s *Slots) closeParked() {
	slices.Sort(s.t.parked)
	for i := 0; i < len(s.t.parked); {
		j := i + 1
		for j < len(s.t.parked) && s.t.parked[j] == s.t.parked[j-1]+1 {
			j++
		}
		s.b.Call(unix.SYS_CLOSE_RANGE, remote.Imm(s.t.parked[i]), remote.Imm(s.t.parked[j-1]), remote.Imm(0)).Must().Discard()
		for _, n := range s.t.parked[i:j] {
			s.t.release(n)
		}
		i = j
	}
	s.t.parked = nil
}
