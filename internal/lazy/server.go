package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cryo/internal/uffd"

	"golang.org/x/sys/unix"
)

// Server brings pages into the tasks of one restore.
type Server struct {
	// Open opens the pages of a task, by the pid it has in the images.
	Open func(pid int) (Pages, error)
	// Find says how this process calls the task that has pid in the images, if sender has spoken for it. nil: as images do.
	Find func(pid, sender int) (host int, err error)
	// Insure arranges that a task ends if this process dies before it has called forget. The userfaultfd must be
	// held open until then: else the task goes on with zeros. nil: nobody does that.
	Insure func(host int, fd uffd.FD) (forget func(), err error)
	// Kill ends a task that cannot be served, with all it has forked. nil: it goes on without.
	Kill func(host int)

	// WorkingSet says what comes first, or records it; nil: neither.
	WorkingSet *WorkingSet

	// What has been done so far.
	Faults atomic.Uint64 // answered with pages of the images
	Copied atomic.Uint64 // pages brought, for faults and without

	began    time.Time
	asked    atomic.Int64 // when a page was last wanted, in ns since it began
	mu       sync.Mutex
	more     *sync.Cond // there is something to fill, or an end
	end      *sync.Cond // there may be an end
	tasks    []*task
	restored bool  // the restore is complete
	failed   error // why no more can be done
	waiting  sync.WaitGroup
}

// source is the pages of a task and of those it forks. It is closed when none of them is served any more, and nobody is
// fetching: what one fetches may come by another's way meanwhile, and be the last that was missing.
type source struct {
	Pages
	pid   int // in the images
	host  int // as this process calls the task
	users atomic.Int32
}

// Fetch is that of Pages; errGone if nobody wants these pages any more.
func (s *source) Fetch(addr, n uint64, deliver Deliver) error {
	for {
		users := s.users.Load()
		if users == 0 {
			return errGone
		}
		if s.users.CompareAndSwap(users, users+1) {
			break
		}
	}
	defer s.drop()
	return s.Pages.Fetch(addr, n, deliver)
}

// drop ends one use.
func (s *source) drop() {
	if s.users.Add(-1) == 0 {
		s.Close()
	}
}

// Far says whether pages take long to come.
func (s *source) Far() bool {
	_, local := s.Pages.(*Local)
	return !local
}

const (
	// fillers is how many bring what nobody has asked for. Two processors are busy with that from memory, and from far
	// away a few questions are on their way at any time.
	fillers = 2
	// chunk is how many bytes each brings at a time. It is what one page table maps: two who fill the same one wait for each
	// other.
	chunk = 2 << 20
	// quiet is how long no page has been wanted when all fill again.
	quiet = 2 * time.Millisecond
)

// Serve serves the restore at the other end of conn until all tasks have all their pages. Its error says why tasks were
// ended, or that the restore failed.
func (s *Server) Serve(ctx context.Context, conn *net.UnixConn) error {
	s.more, s.end = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.began = time.Now()
	// Who fills is in system calls nearly all the time. With processors to spare the runtime leaves it the one it has, instead
	// of looking every 20 µs who else might want that, and who listens has one at once.
	if n := runtime.GOMAXPROCS(0); n < fillers+2 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(fillers + 2))
	}
	defer context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })()
	// A restore that says no more is waited for no longer than there is a reason to.
	stop := make(chan struct{})
	s.waiting.Go(func() {
		select {
		case <-stop:
		case <-ctx.Done():
		}
		conn.Close()
	})
	s.waiting.Go(func() {
		if err := s.handover(conn); err != nil {
			s.fail(err)
		}
	})
	for i := range fillers {
		s.waiting.Go(func() { s.fill(i > 0) })
	}
	s.mu.Lock()
	for !s.over() {
		s.end.Wait()
	}
	err := s.failed
	s.mu.Unlock()
	close(stop)
	if err != nil {
		s.giveUp()
	}
	s.waiting.Wait()
	return err
}

// over says whether there is nothing more to be done; the server is locked.
func (s *Server) over() bool { return s.failed != nil || s.restored && len(s.tasks) == 0 }

// handover takes tasks from the restore until it is complete.
func (s *Server) handover(conn *net.UnixConn) error {
	if err := askSender(conn); err != nil {
		return fmt.Errorf("lazy-pages socket: %w", err)
	}
	for {
		h, err := receive(conn)
		if errors.Is(err, io.EOF) {
			err = errors.New("the restore has failed, or was broken off")
		}
		if err != nil {
			return err
		}
		switch {
		case h.last:
			s.mu.Lock()
			s.restored = true
			s.more.Broadcast()
			s.end.Signal()
			s.mu.Unlock()
			return nil
		case h.fd >= 0:
			if err := s.take(h); err != nil {
				return err
			}
		}
	}
}

// take begins to serve a task.
func (s *Server) take(h handed) error {
	pid, host, fd := h.pid, h.pid, h.fd
	if s.Find != nil {
		var err error
		if host, err = s.Find(pid, h.sender); err != nil {
			return errors.Join(err, fd.Close())
		}
	}
	pages, err := s.Open(pid)
	if err != nil {
		return errors.Join(fmt.Errorf("task %d: %w", pid, err), fd.Close())
	}
	src := &source{Pages: pages, pid: pid, host: host}
	t := s.newTask(fmt.Sprintf("task %d", pid), fd, src, newSpace(pages.Late()))
	t.first = s.WorkingSet.First(pid)
	if s.Insure != nil {
		if t.forget, err = s.Insure(host, fd); err != nil {
			t.end()
			return err
		}
	}
	slog.Debug(fmt.Sprintf("Received PID: %d, uffd: %d", pid, fd), "late pages", t.space.left.Load())
	s.begin(t)
	return nil
}

func (s *Server) newTask(name string, fd uffd.FD, src *source, sp *space) *task {
	src.users.Add(1)
	return &task{s: s, name: name, fd: fd, file: os.NewFile(uintptr(fd), "userfaultfd"), pages: src, space: sp}
}

// begin has a task looked after.
func (s *Server) begin(t *task) {
	s.mu.Lock()
	s.tasks = append(s.tasks, t)
	s.more.Broadcast()
	s.mu.Unlock()
	s.waiting.Go(func() {
		t.endIfDone()
		if err := t.listen(); err != nil {
			s.fail(err)
		}
	})
}

// born begins to serve what a task has forked. The task's space is locked.
func (s *Server) born(parent *task, fd uffd.FD) {
	s.begin(s.newTask("child of "+parent.name, fd, parent.pages, parent.space.clone()))
}

// ended notes that a task needs nothing any more.
func (s *Server) ended(t *task) {
	t.pages.drop()
	s.mu.Lock()
	s.tasks = slices.DeleteFunc(s.tasks, func(other *task) bool { return other == t })
	s.more.Broadcast()
	s.end.Signal()
	s.mu.Unlock()
}

// changed wakes who fills, because there may be something to fill elsewhere.
func (s *Server) changed() {
	s.mu.Lock()
	s.more.Broadcast()
	s.mu.Unlock()
}

// fail ends the service. The first reason counts.
func (s *Server) fail(err error) {
	s.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	s.more.Broadcast()
	s.end.Signal()
	s.mu.Unlock()
}

// giveUp ends all tasks that miss something.
func (s *Server) giveUp() {
	s.mu.Lock()
	left := slices.Clone(s.tasks)
	s.mu.Unlock()
	for _, t := range left {
		if s.Kill != nil && t.space.left.Load() > 0 {
			slog.Error(fmt.Sprintf("%s is ended: %d pages of it are missing", t.name, t.space.left.Load()))
			s.Kill(t.pages.host)
		}
	}
	for _, t := range left {
		t.end()
	}
}

// fill brings what nobody has asked for yet, once the tasks run. Who is polite leaves a processor to tasks that ask for pages, and
// to who answers them.
func (s *Server) fill(polite bool) {
	runtime.LockOSThread() // which ends with this
	giveWay()
	for {
		for polite && time.Since(s.began)-time.Duration(s.asked.Load()) < quiet {
			time.Sleep(quiet)
		}
		t, img, n := s.claim()
		if t == nil {
			return
		}
		err := t.settle(func() error { return t.pages.Fetch(img, n, t.deliver()) })
		if err != nil {
			s.fail(err)
		}
		s.mu.Lock()
		t.busy--
		s.more.Broadcast()
		s.mu.Unlock()
	}
}

// giveWay has this thread give way to any that wakes up with less to do: who listens, and a task whose page has come. It gets
// as much of a processor as before, in longer turns (Linux 6.12; others have turns of one length, and take no notice).
func giveWay() {
	const longest = 100 * time.Millisecond
	if attr, err := unix.SchedGetAttr(0, 0); err == nil && attr.Policy == unix.SCHED_NORMAL {
		attr.Runtime = uint64(longest)
		unix.SchedSetAttr(0, attr, 0) // works without
	}
}

// claim chooses what to fill next, and waits where there is nothing at the moment; nil at the end.
func (s *Server) claim() (t *task, img, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.over() {
			return nil, 0, 0
		}
		for i, t := range s.tasks {
			if img, n, ok := t.next(s.restored); ok {
				// The others come first next time.
				copy(s.tasks[i:], s.tasks[i+1:])
				s.tasks[len(s.tasks)-1] = t
				return t, img, n
			}
		}
		s.more.Wait()
	}
}

// next is what to fill next of a task; the server is locked. What is known to be wanted first comes before the task runs, all
// else when it does. Its layout may be about to change: who holds its lock for that never waits for the server's.
func (t *task) next(running bool) (img, n uint64, ok bool) {
	if t.closed.Load() || !t.mu.TryRLock() {
		return 0, 0, false
	}
	defer t.mu.RUnlock()
	var at uint64
	for len(t.first) > 0 {
		r := t.first[0]
		t.first = t.first[1:]
		if at, img, n, ok = t.space.missing(r.Start, min(chunk, r.End-r.Start)); ok && at < r.End {
			t.busy++
			return img, min(n, r.End-at), true
		}
	}
	if !running {
		return 0, 0, false
	}
	at, img, n, ok = t.space.missing(t.cursor, chunk)
	if !ok && t.busy == 0 && t.cursor > 0 {
		at, img, n, ok = t.space.missing(0, chunk)
	}
	if ok {
		n = min(n, chunk-at%chunk)
		t.cursor = at + n
		t.busy++
	}
	return img, n, ok
}
