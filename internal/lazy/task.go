package lazy

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cryo/internal/uffd"

	"golang.org/x/sys/unix"
)

// task is one address space that is being served.
type task struct {
	s     *Server
	name  string
	fd    uffd.FD
	file  *os.File // the same, waited for by the runtime's poller
	pages *source

	mu    sync.RWMutex // written to by who changes the layout, and read events that do
	space *space

	// Under the server's lock:
	first  []Range // what is to be filled first
	cursor uint64  // where filling goes on after that
	busy   int     // how many are filling

	forget func() // what happens to the task if the server dies
	closed atomic.Bool
}

var (
	// errChanging: the task is changing its address space, and events about that have to be read first.
	errChanging = errors.New("the address space is changing")
	// errGone: the task has ended, or has become another program.
	errGone = errors.New("the task has gone")
)

// listen handles what the task's userfaultfd tells until the task has everything, or has gone.
func (t *task) listen() error {
	conn, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	var events []uffd.Event
	var faults []uint64
	for {
		var told error
		err := conn.Read(func(uintptr) bool {
			events, told = t.read(buf, events[:0])
			t.s.changed() // who fills passes by a task that is being read
			return !errors.Is(told, unix.EAGAIN) || len(faults) > 0
		})
		if err == nil && !errors.Is(told, unix.EAGAIN) {
			err = told
		}
		switch {
		case t.closed.Load():
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", t.name, err)
		}
		for _, e := range events {
			if e.Kind == uffd.Fault {
				faults = append(faults, e.Addr&^(pageSize-1))
			}
		}
		if faults, err = t.serve(faults); err != nil {
			return err
		}
		if len(faults) > 0 && len(events) == 0 {
			// What changes the address space has been read, and has yet to wake up and say so to the kernel.
			syscall.Nanosleep(&syscall.Timespec{Nsec: 20_000}, nil)
		}
	}
}

// read reads events and follows those that change the layout, before anybody else looks at it: the task is let go on by
// being read.
func (t *task) read(buf []byte, events []uffd.Event) ([]uffd.Event, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Load() {
		return nil, errGone
	}
	events, err := t.fd.Read(buf, events)
	for _, e := range events {
		switch e.Kind {
		case uffd.Fork:
			t.s.born(t, e.Child)
		case uffd.Remap:
			t.space.move(e.Addr, e.To, e.Len)
		case uffd.Remove:
			// From here on the range is memory like any other; if the task has gone since, that will be noticed.
			t.space.forget(e.Addr, e.End)
			t.fd.Unregister(e.Addr, e.End-e.Addr)
		case uffd.Unmap:
			t.space.forget(e.Addr, e.End)
		}
	}
	return events, err
}

// serve answers faults, and returns those that have to wait for the address space to settle.
func (t *task) serve(faults []uint64) (again []uint64, err error) {
	for _, addr := range faults {
		if t.pages.Far() {
			go func() {
				if err := t.settle(func() error { return t.fault(addr) }); err != nil {
					t.s.fail(err)
				}
			}()
			continue
		}
		err := t.fault(addr)
		switch {
		case errors.Is(err, errChanging):
			again = append(again, addr)
		case errors.Is(err, errGone):
			t.end()
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
	}
	t.endIfDone()
	return again, nil
}

// settle tries until the address space does not change. Events are read by another goroutine meanwhile.
func (t *task) settle(try func() error) error {
	for {
		err := try()
		switch {
		case t.closed.Load():
			return nil
		case errors.Is(err, errChanging):
			syscall.Nanosleep(&syscall.Timespec{Nsec: 20_000}, nil)
		case errors.Is(err, errGone):
			t.end()
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", t.name, err)
		default:
			t.endIfDone()
			return nil
		}
	}
}

// faultAround is how many bytes a fault brings at most: whoever touches a page soon touches its neighbours.
const faultAround = 64 << 10

// fault brings the page at addr: one that is late, or one of zeros where nothing was dumped.
func (t *task) fault(addr uint64) error {
	t.mu.RLock()
	at, img, n, ok := t.space.missing(addr, faultAround)
	if !ok || at != addr || t.closed.Load() {
		defer t.mu.RUnlock()
		return t.zero(addr)
	}
	t.mu.RUnlock()
	t.s.Faults.Add(1)
	t.s.asked.Store(int64(time.Since(t.s.began)))
	t.s.WorkingSet.Note(t.pages.pid, img, n)
	return t.pages.Fetch(img, n, t.deliver())
}

// deliver is where pages go. What has come from far is not asked for again while the address space changes.
func (t *task) deliver() Deliver {
	if !t.pages.Far() {
		return t.arrived
	}
	return func(img uint64, b []byte) error {
		return t.settle(func() error { return t.arrived(img, b) })
	}
}

func (t *task) zero(addr uint64) error {
	if t.closed.Load() {
		return errGone
	}
	_, err := t.fd.Zeropage(addr, pageSize)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN):
		return errChanging
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT):
		t.fd.Wake(addr, pageSize)
		return nil
	}
	return gone(err)
}

// atOnce is how many bytes are put before what the task tells may be read. A fault waits that long, and a task that changes its
// address space.
const atOnce = 128 << 10

// arrived puts pages where they belong now, those that are still missing.
func (t *task) arrived(img uint64, b []byte) error {
	for len(b) > 0 {
		n := min(atOnce, len(b))
		if err := t.place(img, b[:n]); err != nil {
			return err
		}
		img, b = img+uint64(n), b[n:]
	}
	return nil
}

func (t *task) place(img uint64, b []byte) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed.Load() {
		return errGone
	}
	for _, p := range t.space.places(img, uint64(len(b))) {
		if err := t.put(p.at, b[p.img-img:][:p.n]); err != nil {
			return err
		}
	}
	return nil
}

// put makes pages and wakes who waits for them. Pages that are there already are left alone.
func (t *task) put(addr uint64, b []byte) error {
	most := len(b)
	for len(b) > 0 {
		n, err := t.fd.Copy(addr, b[:min(most, len(b))], false)
		switch {
		case n > 0:
			t.s.Copied.Add(uint64(n / pageSize))
		case errors.Is(err, unix.EEXIST):
			n = pageSize
			t.fd.Wake(addr, pageSize)
		case errors.Is(err, unix.ENOENT) && most > pageSize: // the range is of several mappings
			most = most / 2 / pageSize * pageSize
		case errors.Is(err, unix.ENOENT): // and now of none
			n = pageSize
			t.fd.Wake(addr, pageSize)
		case errors.Is(err, unix.EAGAIN):
			return errChanging
		default:
			return gone(err)
		}
		t.space.mark(addr, uint64(n))
		addr, b = addr+uint64(n), b[n:]
	}
	return nil
}

// gone tells a task that has ended from other errors.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOSPC) {
		return errGone
	}
	return err
}

func (t *task) endIfDone() {
	if t.space.left.Load() == 0 {
		t.end()
	}
}

// end lets go of the task: what faults from here on finds ordinary memory.
func (t *task) end() {
	t.mu.Lock() // nobody is placing a page
	ended := t.closed.Swap(true)
	t.mu.Unlock()
	if ended {
		return
	}
	if t.forget != nil {
		t.forget()
	}
	t.file.Close() // waits for the reader of events, who may want the lock
	t.s.ended(t)
}
