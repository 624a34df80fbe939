package iouring

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of requests and completions, in bytes; twice as much with SQE128 and CQE32.
const (
	sqeSize = 64
	cqeSize = 16
)

// RingsLen is how many bytes of the memory at OffRings are in use: positions, completions, the array of requests.
func (p *Params) RingsLen() int {
	n := int(p.CQ.CQEs) + int(p.CQEntries)*p.CQELen()
	if p.Flags&NoSQArray == 0 {
		n = max(n, int(p.SQ.Array)+4*int(p.SQEntries))
	}
	return n
}

// CQELen is the length of a completion, in bytes.
func (p *Params) CQELen() int {
	if p.Flags&CQE32 != 0 {
		return 2 * cqeSize
	}
	return cqeSize
}

// SQELen is the length of a request, in bytes.
func (p *Params) SQELen() int {
	if p.Flags&SQE128 != 0 {
		return 2 * sqeSize
	}
	return sqeSize
}

// SQEsLen is how many bytes the requests take.
func (p *Params) SQEsLen() int { return int(p.SQEntries) * p.SQELen() }

// Ring is a ring that is mapped here, whoever else uses it.
type Ring struct {
	FD int
	*Params
	Rings, SQEs []byte
}

// Map maps a ring. It stays mapped, however the descriptor fares, until Unmap.
func Map(fd int, p *Params) (*Ring, error) {
	r := &Ring{FD: fd, Params: p}
	var err error
	if r.Rings, err = mapPart(fd, OffRings, p.RingsLen()); err != nil {
		return nil, err
	}
	if r.SQEs, err = mapPart(fd, OffSQEs, p.SQEsLen()); err != nil {
		return nil, fmt.Errorf("%w (and %v)", err, unix.Munmap(r.Rings))
	}
	return r, nil
}

func mapPart(fd int, off int64, size int) ([]byte, error) {
	b, err := unix.Mmap(fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of an io_uring at %#x: %w", size, off, err)
	}
	return b, nil
}

// Unmap gives the mappings back.
func (r *Ring) Unmap() {
	unix.Munmap(r.Rings)
	unix.Munmap(r.SQEs)
}

// Mappable says whether length bytes of a ring can be mapped at an offset and have memory behind them to the end. Of more
// than there is the kernel maps nothing or, since Linux 6.14, what there is; and of some less than all, nothing.
func Mappable(fd int, off int64, length int) bool {
	_, err := ReadPart(fd, off, length)
	return err == nil
}

// ReadPart copies the first bytes of the memory at an offset.
func ReadPart(fd int, off int64, length int) ([]byte, error) {
	m, err := unix.Mmap(fd, off, length, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of an io_uring at %#x: %w", length, off, err)
	}
	defer unix.Munmap(m)
	sink, err := unix.MemfdCreate("io_uring", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(sink)
	if _, err := unix.Pwrite(sink, m[len(m)-1:], 0); err != nil { // where there is nothing the kernel says so
		return nil, fmt.Errorf("read %d bytes of an io_uring at %#x: %w", length, off, err)
	}
	return bytes.Clone(m), nil
}

// Fits says whether a ring may be one with these parameters: it has as much memory, and nothing is in what is left of the
// last pages.
func Fits(fd int, p *Params) bool {
	page := unix.Getpagesize()
	for off, length := range map[int64]int{OffRings: p.RingsLen(), OffSQEs: p.SQEsLen()} {
		whole := (length + page - 1) &^ (page - 1)
		b, err := ReadPart(fd, off, whole)
		if err != nil || Mappable(fd, off, whole+page) || slices.ContainsFunc(b[length:], func(b byte) bool { return b != 0 }) {
			return false
		}
	}
	return true
}

// Load reads a position or another number of the ring.
func (r *Ring) Load(off uint32) uint32 { return atomic.LoadUint32(r.word(off)) }

// Store writes one.
func (r *Ring) Store(off, v uint32) { atomic.StoreUint32(r.word(off), v) }

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.Rings[off : off+4][0])) }

// Operations and flags of requests.
const (
	opNop          = 0
	opMsgRing      = 40     // Linux 5.18
	cqeSkipSuccess = 1 << 6 // Linux 5.17
)

// Where the parts of a request are that are not zero, see struct io_uring_sqe.
const (
	sqeFlagsOff = 1
	sqeFDOff    = 4
)

// Wind leads a fresh ring to the positions of another: sq requests taken, cq completions made, of which the last unread are
// still to be read. What requests and completions say is left to the caller.
//
// A request costs the kernel about 100 nanoseconds. Those that make no completion need Linux 5.17, and completions beyond
// the number of requests 5.18, for they have to be sent from another ring.
func (r *Ring) Wind(ctx context.Context, sq, cq, unread uint32) error {
	if unread > r.CQEntries {
		return fmt.Errorf("%d completions are to be read from an io_uring that has room for %d", unread, r.CQEntries)
	}
	if r.Flags&NoSQArray == 0 {
		r.identity()
	}
	w := &winding{Ring: r, left: cq, unread: unread}
	if cq < sq {
		if err := w.nops(ctx, sq-cq, cqeSkipSuccess); err != nil {
			return err
		}
	}
	if cq > sq {
		if err := w.receive(ctx, cq-sq); err != nil {
			return err
		}
	}
	return w.nops(ctx, min(sq, cq), 0)
}

// winding is a ring on its way.
type winding struct {
	*Ring
	left, unread uint32 // completions yet to be made, and how many of the last are to stay unread
}

// identity lets the requests be taken in the order in which they lie.
func (r *Ring) identity() { Identity(r.Rings[r.SQ.Array:][:4*r.SQEntries]) }

// Identity makes an array of requests one that names them in the order in which they lie.
func Identity(array []byte) {
	for i := range uint32(len(array) / 4) {
		binary.NativeEndian.PutUint32(array[4*i:], i)
	}
}

// fillNops makes every request one that does nothing.
func (r *Ring) fillNops(flags byte) {
	clear(r.SQEs)
	for i := 0; i < len(r.SQEs); i += r.SQELen() {
		r.SQEs[i], r.SQEs[i+sqeFlagsOff] = opNop, flags
		binary.NativeEndian.PutUint32(r.SQEs[i+sqeFDOff:], ^uint32(0))
	}
}

// room takes completions as read, but for those that are to stay, and says how many more there is room for. The kernel
// never sees more room than there will be in the end: it remembers what it has seen.
func (w *winding) room() uint32 {
	stay := w.unread - min(w.left, w.unread)
	w.Store(w.CQ.Head, w.Load(w.CQ.Tail)-stay)
	return w.CQEntries - stay
}

// nops has n requests taken that do nothing.
func (w *winding) nops(ctx context.Context, n uint32, flags byte) error {
	w.fillNops(flags)
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		k := min(n, w.SQEntries, w.room())
		head := w.Load(w.SQ.Head)
		w.Store(w.SQ.Tail, head+k)
		if err := w.submit(ctx, k, head+k); err != nil {
			return err
		}
		n -= k
		if flags&cqeSkipSuccess == 0 {
			w.left -= k
		}
	}
	w.room()
	return nil
}

// submit has requests taken up to a position.
func (r *Ring) submit(ctx context.Context, n, until uint32) error {
	if r.Flags&SQPoll != 0 {
		return r.awaitThread(ctx, until)
	}
	taken, err := Enter(r.FD, n, 0, 0)
	if err == nil && r.Load(r.SQ.Head) != until {
		err = fmt.Errorf("io_uring_enter took %d of %d requests that do nothing", taken, n)
	}
	return err
}

// awaitThread wakes the kernel's thread until it has taken and done all requests.
func (r *Ring) awaitThread(ctx context.Context, until uint32) error {
	const shortest, longest = 20 * time.Microsecond, 2 * time.Millisecond
	for pause := shortest; ; pause = min(2*pause, longest) {
		if _, err := Enter(r.FD, 0, 0, EnterSQWakeup); err != nil {
			return err
		}
		if r.Load(r.SQ.Head) == until {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// messages is how many requests the ring has that sends messages.
const messages = 256

// receive has n completions made for which the ring has had no request.
func (w *winding) receive(ctx context.Context, n uint32) error {
	p := &Params{}
	fd, err := Setup(messages, p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, err := Map(fd, p)
	if err != nil {
		return err
	}
	defer from.Unmap()
	from.identity()
	for i := 0; i < len(from.SQEs); i += sqeSize {
		from.SQEs[i], from.SQEs[i+sqeFlagsOff] = opMsgRing, cqeSkipSuccess
		binary.NativeEndian.PutUint32(from.SQEs[i+sqeFDOff:], uint32(w.FD))
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		k := min(n, p.SQEntries, w.room())
		want := w.Load(w.CQ.Tail) + k
		head := from.Load(p.SQ.Head)
		from.Store(p.SQ.Tail, head+k)
		if err := from.submit(ctx, k, head+k); err != nil {
			return err
		}
		if w.Load(w.CQ.Tail) != want {
			return fmt.Errorf("completions cannot be put into an io_uring without requests (IORING_OP_MSG_RING, Linux 5.18)")
		}
		n, w.left = n-k, w.left-k
	}
	return nil
}
