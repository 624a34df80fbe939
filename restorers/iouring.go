package restorers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"unsafe"

	"cryo/internal/features"
	"cryo/internal/image"
	"cryo/internal/iouring"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// IOURing restores rings for requests (io_uring(7), Linux 5.1) that had nothing in flight.
//
// The task that owns a ring makes it. The tool then has it take as many requests that do nothing as the dumped one had
// taken, for programs remember their positions, and puts the contents in. Tasks map it last of all, see
// [FilePlan.EmitRings].
type IOURing struct{}

type ioURing struct {
	*image.IOURing
	id     uint32
	params iouring.Params // as the kernel here makes it
	table  *Table
	number int // in table, from Open on
}

// What the kernel makes at most (IORING_MAX_ENTRIES, IORING_MAX_CQ_ENTRIES).
const (
	maxRequests    = 32768
	maxCompletions = 2 * maxRequests
	maxBuffers     = 1 << 14 // IORING_MAX_REG_BUFFERS
)

// knownRingFlags are those a dump may note.
const knownRingFlags = iouring.SQPoll | iouring.CQSize | iouring.SubmitAll | iouring.SQE128 | iouring.CQE32 | iouring.NoSQArray

// Plan checks the entry, and whether the kernel here makes such a ring.
func (IOURing) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetExt() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no ext", e.GetId())
	}
	ring, err := image.GetIOURing(e.GetExt())
	if err != nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d: %w", e.GetId(), err)
	}
	if ring == nil {
		return nil, fmt.Errorf("a file that a plugin of criu's has dumped, and only that can restore")
	}
	r := &ioURing{IOURing: ring, id: e.GetId()}
	if err := r.check(); err != nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d, io_uring: %w", e.GetId(), err)
	}
	if err := r.try(); err != nil {
		return nil, err
	}
	p.plan.late = p.plan.late || r.late() || len(r.Buffers) > 0
	if !r.late() {
		p.plan.after(Open, r)
		return r, nil
	}
	p.plan.after(Late, r)
	return r, nil
}

// late says whether a thread of the kernel's takes the requests. It is one of the task's threads, with the credentials of
// who makes the ring and an id that nobody chooses: so the ring is made when all others are there and have theirs.
func (r *ioURing) late() bool { return r.Flags&iouring.SQPoll != 0 }

// Settle refuses a ring with a thread that several tasks have: when it is made they may have lost the right to take
// descriptors from each other.
func (r *ioURing) Settle(p *FilePlanner) error {
	for _, t := range p.Tables() {
		if r.late() && t.first(r.id) >= 0 && t != p.File(r.id).Owner {
			return fmt.Errorf("an io_uring with a thread of the kernel's (IORING_SETUP_SQPOLL) that %s has as well: this cannot be restored yet", t.Node)
		}
	}
	return nil
}

// check refuses what no kernel would take.
func (r *ioURing) check() error {
	switch {
	case r.Flags&^knownRingFlags != 0:
		return fmt.Errorf("flags %#x, some of which are not known", r.Flags)
	case r.SQEntries > maxRequests || r.CQEntries > maxCompletions || r.CQEntries < r.SQEntries ||
		bits.OnesCount32(r.SQEntries) != 1 || bits.OnesCount32(r.CQEntries) != 1:
		return fmt.Errorf("%d requests and %d completions", r.SQEntries, r.CQEntries)
	case len(r.Buffers) > maxBuffers:
		return fmt.Errorf("%d registered buffers", len(r.Buffers))
	case r.unread() > r.CQEntries:
		return fmt.Errorf("%d completions that are to be read, of at most %d", r.unread(), r.CQEntries)
	case r.Number(r.SQ.Tail)-r.SQHead > r.SQEntries:
		return fmt.Errorf("%d requests that are to be taken, of at most %d", r.Number(r.SQ.Tail)-r.SQHead, r.SQEntries)
	case r.Flags&iouring.SQPoll != 0 && r.Number(r.SQ.Tail) != r.SQHead:
		return errors.New("requests that the kernel's thread would take before all is there")
	}
	return nil
}

// unread is how many completions the program has not taken yet.
func (r *ioURing) unread() uint32 { return r.CQTail - r.Number(r.CQ.Head) }

// try has the kernel make such a ring, and compares what programs have learnt of the dumped one.
func (r *ioURing) try() error {
	if err := features.IOURing.Err(); err != nil {
		return err
	}
	r.params = iouring.Params{Flags: (r.Flags | iouring.CQSize) &^ iouring.SQPoll, CQEntries: r.CQEntries}
	fd, err := iouring.Setup(r.SQEntries, &r.params)
	if err != nil {
		return fmt.Errorf("this kernel makes no io_uring like the dumped one (flags %#x): %w", r.Flags, err)
	}
	unix.Close(fd)
	r.params.Flags |= r.Flags & iouring.SQPoll
	if r.params.SQ != r.SQ || r.params.CQ != r.CQ || r.params.SQEntries != r.SQEntries || r.params.CQEntries != r.CQEntries {
		return errors.New("this kernel lays an io_uring out otherwise than the one it was dumped on, and the program knows where things are")
	}
	if len(r.Rings) > r.params.RingsLen() || len(r.SQEs) > r.params.SQEsLen() {
		return image.Errorf(image.Files.File(0), -1, "id %d: the contents of an io_uring are longer than itself", r.id)
	}
	return nil
}

func (r *ioURing) Needs() []uint32 { return nil }

func (r *ioURing) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch {
	case lv == Open && r.late():
		const placeholder = unix.SYS_EVENTFD2
		s.Made(b.Call(placeholder, remote.Imm(0), remote.Imm(unix.EFD_CLOEXEC)), r.id, unix.O_CLOEXEC)
		return nil
	case lv == Late && r.late():
		s.Unmake(r.id)
	case lv == Late:
		r.emitBuffers(b, s)
		return nil
	case lv != Open:
		return nil
	}
	p := iouring.Params{Flags: r.Flags | iouring.CQSize, CQEntries: r.CQEntries}
	params := b.InOut(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&p)), iouring.ParamsSize)))
	s.Made(b.Call(unix.SYS_IO_URING_SETUP, remote.Imm(r.SQEntries), params), r.id, unix.O_CLOEXEC)
	r.table, r.number = s.t, s.Number(r.id)
	if lv == Late {
		r.emitBuffers(b, s)
	}
	return nil
}

// emitBuffers registers buffers. Memory is all there, or who brings it; and it counts against the limits of the task.
func (r *ioURing) emitBuffers(b *remote.Builder, s *Slots) {
	var places []uint64 // structs iovec
	for _, buf := range r.Buffers {
		places = append(places, buf.Addr, buf.Len)
	}
	if len(places) > 0 {
		b.Call(unix.SYS_IO_URING_REGISTER, remote.Imm(s.Number(r.id)), remote.Imm(iouring.RegisterBuffers), b.Bytes(quads(places...)), remote.Imm(len(r.Buffers))).Must().Discard()
	}
}

// fill leads the ring to where it was and puts the contents in.
func (r *ioURing) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	fd, err := open(r.table, r.number)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ring, err := iouring.Map(fd, &r.params)
	if err != nil {
		return err
	}
	defer ring.Unmap()
	if err := ring.Wind(ctx, r.SQHead, r.CQTail, r.unread()); err != nil {
		return fmt.Errorf("%s: fd %d: io_uring: %w", r.table.Node, r.number, err)
	}
	clear(ring.SQEs)
	copy(ring.SQEs, r.SQEs)
	cqes := int(r.CQ.CQEs)
	clear(ring.Rings[cqes:]) // completions and the array of requests; positions lie before them
	if len(r.Rings) > cqes {
		copy(ring.Rings[cqes:], r.Rings[cqes:])
	}
	for _, off := range []uint32{r.SQ.Dropped, r.CQ.Overflow, r.CQ.Flags, r.SQ.Tail} {
		ring.Store(off, r.Number(off))
	}
	return nil
}
