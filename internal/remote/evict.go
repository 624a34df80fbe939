package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
)

// The page of the interpreter ends with a label, so that an engine can be found in a task by one who knows nothing of it.
const (
	labelOffset = arch.BlobPage - 24
	labelMagic  = 0x65_6e_69_67_6e_65_6f_79 // then the size of the area in 8 bytes, and whose it is
)

// labelledCode is the first page of an area of the given size, of the task of a thread.
func labelledCode(size uint64, tid int) []byte {
	page := make([]byte, arch.BlobPage)
	copy(page, arch.Code())
	copy(page[labelOffset:], label(size, tid))
	return page
}

// label is what the page of the interpreter ends with.
func label(size uint64, tid int) []byte {
	return le.AppendUint64(le.AppendUint64(le.AppendUint64(make([]byte, 0, 24), labelMagic), size), uint64(tid))
}

// Evict removes from a task the engines that a tool left in it when it was killed. The task must not be traced any more,
// or cease to be soon; threads that are still on their way out of a program, or out of the call that maps or unmaps the
// engine, are waited for, until ctx ends. The task goes on as it was, running or stopped.
func Evict(ctx context.Context, pid int) error {
	escape, err := FindEscape(pid)
	if err != nil {
		return ignoreGone(err)
	}
	found, err := findEngines(pid, true)
	if err != nil {
		return err
	}
	if len(found) == 0 { // perhaps not yet; but a task that somebody else traces is not waited for
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, evictPatience)
		defer cancel()
	}
	t := ptrace.NewTracer()
	defer t.Close() // lets go of what is still traced then
	return t.Do(func() error {
		tids, err := seizeAll(ctx, pid)
		if len(found) == 0 && errors.Is(err, unix.EPERM) {
			return nil
		}
		if err != nil || len(tids) == 0 {
			return ignoreGone(err)
		}
		areas, err := findEngines(pid, true)
		if err == nil {
			tids, err = stopOutside(ctx, tids, areas, escape)
		}
		if err == nil {
			areas, err = findEngines(pid, true) // now it is sure: a thread may have escaped from its mmap meanwhile
		}
		for i := 0; err == nil && i < len(areas); i++ {
			err = unmapArea(tids[0], areas[i])
		}
		for _, tid := range tids {
			if e := ptrace.Detach(tid, 0); !errors.Is(e, unix.ESRCH) {
				err = errors.Join(err, e)
			}
		}
		return ignoreGone(err)
	})
}

// evictPatience is how long a dying tracer may hold a task.
const evictPatience = 200 * time.Millisecond

// findEngines looks for engines in a task. The kernel may have merged their mappings with others, so it looks at each page. own
// leaves out those of tasks that share the memory.
func findEngines(pid int, own bool) ([]Area, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return nil, ignoreGone(err)
	}
	defer dir.Close()
	maps, err := dir.Maps()
	if err != nil {
		return nil, ignoreGone(err)
	}
	want := arch.Code()
	var areas []Area
	page := make([]byte, arch.BlobPage)
	seen := uint64(0) // what follows the label is not read: see Session.Spare
	for i, m := range maps {
		if m.Perms != "rwxp" && m.Perms != "r-xp" || m.Ino != 0 || m.Name != "" {
			continue
		}
		end, whole := m.End, m.End
		if m.Perms == "r-xp" && i+1 < len(maps) && maps[i+1].Start == end { // see Session.mapArea
			end = maps[i+1].End
		}
		for _, n := range maps[i+1:] { // it may be in pieces
			if n.Start != whole || n.Ino != 0 || n.Name != "" {
				break
			}
			whole = n.End
		}
		for at := max(m.Start, seen); at+arch.BlobPage <= m.End; at = max(at+arch.BlobPage, seen) {
			if ptrace.ReadMemory(pid, at, page) != nil || !bytes.HasPrefix(page, want) || le.Uint64(page[labelOffset:]) != labelMagic {
				if at == engineHint || at == sharedHint(pid) { // perhaps nothing was written yet
					areas = append(areas, Area{at, end - at})
					break
				}
				continue
			}
			size, tid := le.Uint64(page[labelOffset+8:]), le.Uint64(page[labelOffset+16:])
			if size > whole-at {
				continue
			}
			seen = at + size
			if !own || isThread(pid, tid) { // else of a task that shares this one's memory
				areas = append(areas, Area{at, size})
			}
		}
	}
	return areas, nil
}

// isThread says whether a thread is one of a task, as far as there is such a thread.
func isThread(pid int, tid uint64) bool {
	there := func(task int) bool {
		return unix.Access(fmt.Sprintf("/proc/%d/task/%d", task, tid), unix.F_OK) == nil
	}
	return there(pid) || unix.Access(fmt.Sprintf("/proc/%d", tid), unix.F_OK) != nil
}

// ignoreGone drops the error of a task that has ended.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// maxEscape is more than a signal frame and what precedes it.
const maxEscape = 64 << 10

// evictPause is the time between two looks at a task that is not ready.
const evictPause = time.Millisecond

// seizeAll seizes and interrupts every thread of a task, also those made meanwhile.
func seizeAll(ctx context.Context, pid int) (tids []int, err error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for fresh := true; fresh; {
		fresh = false
		all, err := dir.Threads()
		if err != nil {
			return tids, err
		}
		for _, tid := range all {
			if slices.Contains(tids, tid) {
				continue
			}
			err := seize(ctx, dir, tid)
			if err != nil && hasEnded(dir, tid) {
				continue
			}
			if err == nil {
				tids, fresh = append(tids, tid), true
				err = ptrace.Interrupt(tid)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return tids, err
			}
		}
	}
	return tids, nil
}

// seize seizes a thread. One that has a tracer may be let go by it: it may be dying.
func seize(ctx context.Context, dir *procfs.Dir, tid int) error {
	err := ptrace.Seize(tid, 0)
	for errors.Is(err, unix.EPERM) && !hasEnded(dir, tid) && pause(ctx) {
		err = ptrace.Seize(tid, 0)
	}
	return err
}

// seizeOne seizes and interrupts the first thread of a task that is alive.
func seizeOne(ctx context.Context, pid int) (int, error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	tids, err := dir.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if err = seize(ctx, dir, tid); err != nil && hasEnded(dir, tid) {
			continue
		}
		if err == nil {
			err = ptrace.Interrupt(tid)
		}
		return tid, err
	}
	return 0, fmt.Errorf("all threads of task %d have ended: %w", pid, unix.ESRCH)
}

// HasEngine says whether there is an engine in a task's memory.
func HasEngine(pid int) (bool, error) {
	areas, err := findEngines(pid, false)
	return len(areas) > 0, err
}

// hasEnded says whether a thread is dead, be it still listed.
func hasEnded(dir *procfs.Dir, tid int) bool {
	st, err := dir.ThreadStatus(tid)
	return err != nil || st.State == 'Z' || st.State == 'X'
}

// pause waits a little, and returns false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(evictPause):
		return true
	case <-ctx.Done():
		return false
	}
}

// stopOutside waits until all threads have stopped, none in an engine or escaping, and returns those that have not ended
// meanwhile.
func stopOutside(ctx context.Context, tids []int, areas []Area, escape Escape) (stopped []int, err error) {
	for _, tid := range tids {
		err := awaitInterrupt(ctx, tid)
		inside := true
		for err == nil {
			if inside, err = isInside(tid, areas, escape); err != nil || !inside {
				break
			}
			if err = ptrace.Cont(tid, 0); err == nil && !pause(ctx) {
				err = fmt.Errorf("thread %d does not leave the program it runs: %w", tid, ctx.Err())
			}
			if err == nil {
				err = stopAgain(ctx, tid)
			}
		}
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ECHILD) {
			return tids, err
		}
		if !inside {
			stopped = append(stopped, tid)
		}
	}
	if len(stopped) == 0 {
		return nil, fmt.Errorf("all threads have ended: %w", unix.ESRCH)
	}
	return stopped, nil
}

// isInside says whether a stopped thread runs an engine or is about to escape from a lone call.
func isInside(tid int, areas []Area, escape Escape) (bool, error) {
	var regs arch.Regs
	if err := ptrace.GetRegs(tid, &regs); err != nil {
		return false, err
	}
	if escape.holds(&regs) {
		return true, nil
	}
	pc := regs.PC()
	return slices.ContainsFunc(areas, func(a Area) bool { return pc-a.Start < a.Size }), nil
}

// awaitInterrupt waits for the stop an interrupt asked for, but not for ever: a task in a frozen cgroup of version 1 does not
// stop.
func awaitInterrupt(ctx context.Context, tid int) error {
	var pauser ptrace.Pauser
	for {
		st, ok, err := ptrace.Poll(tid)
		switch {
		case err != nil:
			return err
		case !ok && ctx.Err() != nil:
			return fmt.Errorf("thread %d does not stop: %w", tid, ctx.Err())
		case !ok:
			pauser.Pause(evictPause)
			continue
		case st.Gone():
			return fmt.Errorf("%v: %w", st, unix.ESRCH)
		case st.Event() == ptrace.EventStop:
			return nil
		}
		if err := passOn(tid, st); err != nil {
			return err
		}
	}
}

// stopAgain stops a thread that was let go on. One that has stopped by itself, as a thread in a group-stop may, is not
// interrupted once more: the second interrupt would stop it again before it has done a single instruction.
func stopAgain(ctx context.Context, tid int) error {
	st, ok, err := ptrace.Poll(tid)
	switch {
	case err != nil:
		return err
	case ok && st.Gone():
		return fmt.Errorf("%v: %w", st, unix.ESRCH)
	case ok && st.Event() == ptrace.EventStop:
		return nil
	case ok:
		err = passOn(tid, st)
	}
	if err == nil {
		err = ptrace.Interrupt(tid)
	}
	if err == nil {
		err = awaitInterrupt(ctx, tid)
	}
	return err
}

// passOn lets a thread go on with the signal it has stopped for.
func passOn(tid int, st ptrace.Status) error {
	sig := st.StopSignal()
	if st.Event() != 0 || st.SyscallStop() {
		sig = 0
	}
	return ptrace.Cont(tid, sig)
}

// unmapArea unmaps an area by a stopped thread outside of it, and closes what was lent there.
func unmapArea(tid int, a Area) error {
	t, err := Capture(tid)
	if err != nil {
		return err
	}
	s, err := prepare(t, Options{})
	if err != nil {
		return err
	}
	s.area = a
	return errors.Join(s.closeLent(), s.Eject())
}
