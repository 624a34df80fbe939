package collectors

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"cryo/internal/pagecopy"
	"cryo/internal/pagemap"
	"cryo/internal/remote"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// memoryCopy is where the memory of a task is read from that has gone on: a copy-on-write copy of it, and a file with what
// that has not.
//
// A fork leaves out what was marked so (MADV_DONTFORK, Linux 2.6.16) and empties what was marked so (MADV_WIPEONFORK,
// 4.14; MAP_DROPPABLE, 6.11). Private huge pages of hugetlbfs are in the copy, but the kernel takes them away from it when
// there are no others for the task to write to. The ring of an AIO context is shared with the task.
type memoryCopy struct {
	pid     int
	session *remote.Session // of the copy
	runs    []keptRun       // ascending
	at      []bool          // by mapping: it is in runs, all of it
	file    *os.File        // nil: no runs
	size    int64
}

// keptRun is memory that was copied into the file.
type keptRun struct {
	addr, len uint64
	off       int64
}

// maxKept bounds the list of runs.
const maxKept = 1 << 16

// errManyRuns says that a copy lacks too much, in too many pieces.
var errManyRuns = errors.New("what is not handed on by a fork is in too many pieces")

// HandOver makes DumpPages and the flags of mappings come from a copy-on-write copy of the task. The task
// still stands still; it may go on when HandOver has returned. What the copy has not goes into a file that spill makes.
func (m *Memory) HandOver(ctx context.Context, t *Task, to *remote.Copy, spill func() (*os.File, error), self *SelfWriting) error {
	if err := m.askRings(t, self); err != nil {
		return err
	}
	h, err := newHandOver(ctx, m, t, to, spill)
	if err != nil {
		return err
	}
	defer h.close()
	lost, err := h.keepAll()
	if err != nil {
		h.copy.close()
		return err
	}
	// Locks are not inherited either. Where the kernel has to be asked now, the time it takes is the task's.
	if lost || m.locked {
		if err := m.applyFlags(); err != nil {
			h.copy.close()
			return err
		}
	}
	if !m.flagged && !m.small(t) {
		m.flagsFrom(flagsOf(to.PID))
	}
	m.copy, m.guards = h.copy, h.guards
	return nil
}

// TakeBack makes DumpPages read the task itself again.
func (m *Memory) TakeBack(t *Task) {
	if m.copy == nil {
		return
	}
	m.copy.close()
	m.copy, m.guards = nil, nil
	if !m.flagged && !m.small(t) {
		m.flagsFrom(flagsOf(t.Pid))
	}
}

// HandedOver says whether HandOver has been called.
func (m *Memory) HandedOver() bool { return m.copy != nil }

// handOver compares a task with its copy.
type handOver struct {
	ctx      context.Context
	m        *Memory
	copy     *memoryCopy
	copied   []vma.Mapping
	task     *pagecopy.Task
	from, to *pagemap.Map
	spill    func() (*os.File, error)
	buf      []byte
	guards   []pagemap.Region
}

func newHandOver(ctx context.Context, m *Memory, t *Task, to *remote.Copy, spill func() (*os.File, error)) (h *handOver, err error) {
	h = &handOver{ctx: ctx, m: m, copy: &memoryCopy{pid: to.PID, session: to.Session, at: make([]bool, len(m.maps))}, spill: spill, task: t.Pages()}
	if h.copied, err = vma.List(to.PID); err == nil {
		h.from, err = pagemap.Open(t.Pid)
	}
	if err == nil {
		h.to, err = pagemap.Open(to.PID)
	}
	if err != nil {
		h.close()
	}
	return h, err
}

func (h *handOver) close() {
	h.task.Close()
	for _, pm := range []*pagemap.Map{h.from, h.to} {
		if pm != nil {
			pm.Close()
		}
	}
}

// keepAll keeps what the copy has not, and says whether whole mappings are missing there.
func (h *handOver) keepAll() (lost bool, err error) {
	for i := range h.m.maps {
		mp := &h.m.maps[i]
		ring := h.m.kinds[i] == vma.AIORing
		if !ring && !h.m.private(i) {
			continue
		}
		missing := !h.has(mp.Start)
		keep := missing || ring || vma.HugePageOf(mp.Dev) != 0
		if !keep && h.m.kinds[i] == vma.Anonymous {
			if keep, err = h.wiped(mp); err != nil {
				return lost, err
			}
		}
		if keep {
			if err := h.keep(i); err != nil {
				return lost, fmt.Errorf("mapping %s of task: %w", mp.Link(), err)
			}
		}
		lost = lost || missing
	}
	return lost, nil
}

// has says whether the copy has a mapping at addr. Addresses ascend.
func (h *handOver) has(addr uint64) bool {
	for len(h.copied) > 0 && h.copied[0].End <= addr {
		h.copied = h.copied[1:]
	}
	return len(h.copied) > 0 && h.copied[0].Start <= addr
}

// wiped says whether a mapping of anonymous memory with pages is empty in the copy.
func (h *handOver) wiped(mp *vma.Mapping) (bool, error) {
	there, err := h.to.Any(mp.Start, mp.End, pagemap.OwnAnonymous)
	if there || err != nil {
		return false, err
	}
	return h.from.Any(mp.Start, mp.End, pagemap.OwnAnonymous)
}

// keep copies the pages of mapping i into the file. Its guard regions are noted here: the copy does not have them.
func (h *handOver) keep(i int) error {
	mp := &h.m.maps[i]
	h.copy.at[i] = true
	forced := mp.Prot&unix.PROT_READ == 0
	if h.m.whole(i) {
		return h.save(mp.Start, mp.Len(), forced)
	}
	return h.from.Scan(mp.Start, mp.End, pagemap.Own, func(r pagemap.Region) error {
		if r.Categories&pagemap.Guard != 0 {
			h.guards = append(h.guards, r)
			return nil
		}
		return h.save(r.Start, r.Len(), forced)
	})
}

// save appends memory of the task to the file.
func (h *handOver) save(addr, n uint64, forced bool) (err error) {
	if len(h.copy.runs) == maxKept {
		return errManyRuns
	}
	if h.copy.file == nil {
		if h.copy.file, err = h.spill(); err != nil {
			return err
		}
		h.buf = make([]byte, 256<<10)
	}
	h.copy.runs = append(h.copy.runs, keptRun{addr, n, h.copy.size})
	for n > 0 {
		if err := context.Cause(h.ctx); err != nil {
			return err
		}
		part := h.buf[:min(n, uint64(len(h.buf)))]
		if err := h.task.ReadPages([]pagecopy.Range{{Addr: addr, Len: uint64(len(part)), Force: forced}}, part); err != nil {
			return err
		}
		if _, err := h.copy.file.WriteAt(part, h.copy.size); err != nil {
			return err
		}
		addr, n, h.copy.size = addr+uint64(len(part)), n-uint64(len(part)), h.copy.size+int64(len(part))
	}
	return nil
}

func (c *memoryCopy) close() {
	if c != nil && c.file != nil {
		c.file.Close()
	}
}

// holds says whether mapping i is in the file. nil holds none.
func (c *memoryCopy) holds(i int) bool { return c != nil && c.at[i] }

// within calls yield for the runs between start and end.
func (c *memoryCopy) within(start, end uint64, yield func(keptRun) error) error {
	i, _ := slices.BinarySearchFunc(c.runs, start, func(r keptRun, addr uint64) int {
		if r.addr < addr {
			return -1
		}
		return 1
	})
	for ; i < len(c.runs) && c.runs[i].addr < end; i++ {
		if err := yield(c.runs[i]); err != nil {
			return err
		}
	}
	return nil
}

// copySource reads pages of a copy, and out of the file what is there.
type copySource struct {
	*pagecopy.Task
	copy *memoryCopy
}

// ReadPages implements pagecopy.Source.
func (s copySource) ReadPages(ranges []pagecopy.Range, buf []byte) error {
	for len(ranges) > 0 {
		n, bytes := 0, uint64(0)
		for n < len(ranges) && s.copy.find(ranges[n].Addr) == nil {
			bytes += ranges[n].Len
			n++
		}
		if n > 0 {
			if err := s.Task.ReadPages(ranges[:n], buf[:bytes]); err != nil {
				return err
			}
		} else {
			r := s.copy.find(ranges[0].Addr)
			n, bytes = 1, ranges[0].Len
			if _, err := s.copy.file.ReadAt(buf[:bytes], r.off+int64(ranges[0].Addr-r.addr)); err != nil {
				return fmt.Errorf("memory kept of the task: %w", err)
			}
		}
		ranges, buf = ranges[n:], buf[bytes:]
	}
	return nil
}

// find returns the run that addr is in, nil if there is none.
func (c *memoryCopy) find(addr uint64) *keptRun {
	i, found := slices.BinarySearchFunc(c.runs, addr, func(r keptRun, addr uint64) int {
		switch {
		case r.addr+r.len <= addr:
			return -1
		case r.addr > addr:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return &c.runs[i]
}
