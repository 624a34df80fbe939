package restorers

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"cryo/internal/image"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// pageWriter writes pages of pages files into a task's memory, with several workers when there is much. A job is a window
// of one file and where its parts go: the kernel copies from the page cache, the tool keeps nothing.
type pageWriter struct {
	pid  int
	copy *Uffd // for parts that are Copied
	last bool  // what has been written is read by nobody else
	ctx  context.Context

	job   *writeJob
	jobs  chan *writeJob // nil before there is a second job
	group *errgroup.Group
	pages uint64
}

// Bounds of a job.
const (
	jobWindow   = 4 << 20 // bytes of the file
	maxSegments = 1024    // IOV_MAX
)

// writeJob is one window of a file.
type writeJob struct {
	file       *image.Pages
	start, end int64 // in the file
	segments   []writeSegment
}

type writeSegment struct {
	to   uint64 // address in the task
	off  int64
	n    uint64
	part *Part
}

func newPageWriter(ctx context.Context, pid int, copy *Uffd) *pageWriter {
	return &pageWriter{pid: pid, copy: copy, ctx: ctx}
}

// put writes the bytes of run from at to end.
func (w *pageWriter) put(p *Part, run pageRun, at, end uint64) error {
	off := run.off + int64(at-run.Start)
	w.pages += (end - at) / image.PageSize
	for at < end {
		if j := w.job; j != nil && (j.file != run.file.Pages || off < j.start || off >= j.start+jobWindow || len(j.segments) == maxSegments) {
			if err := w.send(); err != nil {
				return err
			}
		}
		if w.job == nil {
			w.job = &writeJob{file: run.file.Pages, start: off &^ (image.PageSize - 1)}
		}
		n := min(end-at, uint64(w.job.start+jobWindow-off))
		w.job.segments = append(w.job.segments, writeSegment{at + p.Shift, off, n, p})
		at, off = at+n, off+int64(n)
		w.job.end = max(w.job.end, off)
	}
	return nil
}

// send gives the job to the workers, who are hired now if they are not there.
func (w *pageWriter) send() error {
	if w.jobs == nil {
		w.group, w.ctx = errgroup.WithContext(w.ctx)
		workers := runtime.GOMAXPROCS(0)
		w.jobs = make(chan *writeJob, workers)
		for range workers {
			w.group.Go(w.work)
		}
	}
	j := w.job
	w.job = nil
	select {
	case w.jobs <- j:
		return nil
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
}

func (w *pageWriter) work() error {
	for j := range w.jobs {
		if err := w.ctx.Err(); err != nil {
			return context.Cause(w.ctx)
		}
		if err := w.do(j); err != nil {
			return err
		}
	}
	return nil
}

// close writes what is left and waits until all is written.
func (w *pageWriter) close() error {
	if w.jobs == nil {
		if w.job == nil {
			return nil
		}
		return w.do(w.job)
	}
	var err error
	if w.job != nil {
		err = w.send()
	}
	close(w.jobs)
	if werr := w.group.Wait(); werr != nil {
		return werr
	}
	return err
}

// do writes one job.
func (w *pageWriter) do(j *writeJob) error {
	window, err := j.file.Window(j.start, j.end-j.start)
	if err != nil {
		return err
	}
	err = w.write(j, window.Bytes)
	window.Close()
	if w.last && err == nil {
		j.release()
	}
	return err
}

// release gives back what was written. Several runs mostly lie side by side in their file.
func (j *writeJob) release() {
	from, to := j.segments[0].off, j.segments[0].off
	for _, s := range j.segments {
		if s.off != to {
			j.file.Release(from, to-from)
			from = s.off
		}
		to = s.off + int64(s.n)
	}
	j.file.Release(from, to-from)
}

func (w *pageWriter) write(j *writeJob, window []byte) (err error) {
	plain := vectors{pid: w.pid}
	for _, s := range j.segments {
		b := window[s.off-j.start:][:s.n]
		switch {
		case s.part.Forced:
			err = force(w.pid, s.to, b)
		case s.part.Copied:
			err = w.copy.Copy(s.to, b)
		default:
			plain.add(s.to, b)
		}
		if err != nil {
			return err
		}
	}
	return plain.write()
}

// vectors is what one process_vm_writev (Linux 3.2) writes.
type vectors struct {
	pid    int
	local  []unix.Iovec
	remote []unix.RemoteIovec
	size   int
}

func (v *vectors) add(to uint64, b []byte) {
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	v.local = append(v.local, local)
	v.remote = append(v.remote, unix.RemoteIovec{Base: uintptr(to), Len: len(b)})
	v.size += len(b)
}

func (v *vectors) write() error {
	if v.size == 0 {
		return nil
	}
	n, err := unix.ProcessVMWritev(v.pid, v.local, v.remote, 0)
	if err == nil && n != v.size {
		// The kernel stops in front of the first page that takes no writing.
		err = fmt.Errorf("%d of %d bytes: %w", n, v.size, unix.EFAULT)
	}
	if err != nil {
		return fmt.Errorf("write pages to %x of task %d: %w", v.remote[0].Base, v.pid, err)
	}
	return nil
}

// force writes where the task itself may not: the kernel copies the page first, as it does for a debugger's breakpoints.
func force(pid int, addr uint64, b []byte) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	if _, err = mem.WriteAt(b, int64(addr)); err != nil {
		return fmt.Errorf("write pages to %x of task %d: %w", addr, pid, err)
	}
	return nil
}
