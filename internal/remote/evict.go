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
	labelOffset = arch.BlobPage - 16
	labelMagic  = 0x65_6e_69_67_6e_65_6f_79 // then the size of the area in 8 bytes
)

// labelledCode is the first page of an area of the given size.
func labelledCode(size uint64) []byte {
	page := make([]byte, arch.BlobPage)
	copy(page, arch.Code())
	le.PutUint64(page[labelOffset:], labelMagic)
	le.PutUint64(page[labelOffset+8:], size)
	return page
}

// Evict removes from a task the engines that a tool left in it when it was killed. The task must not be traced any more,
// or cease to be soon; threads that are still on their way out of a program are waited for, until ctx ends. The task
// goes on as it was, running or stopped.
//
// Its threads are stopped before it is looked at: one that was making the mapping when the tool died makes it after that.
func Evict(ctx context.Context, pid int) error {
	found, err := findEngines(pid)
	if err != nil {
		return err
	}
	if len(found) == 0 { // perhaps not yet; but a task that somebody else traces is not waited for
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, evictPatience)
		defer cancel()
	}
	t := ptrace.NewTracer()
	defer t.Close()
	return t.Do(func() error {
		tids, err := seizeAll(ctx, pid)
		if err == nil {
			err = awaitStops(tids)
		}
		var areas []Area
		if err == nil {
			areas, err = findEngines(pid)
		}
		if err == nil && len(areas) > 0 {
			tids, err = stopOutside(ctx, tids, areas)
		}
		for i := 0; err == nil && i < len(areas); i++ {
			err = unmapArea(tids[0], areas[i])
		}
		for _, tid := range tids {
			if e := ptrace.Detach(tid, 0); !errors.Is(e, unix.ESRCH) {
				err = errors.Join(err, e)
			}
		}
		if len(found) == 0 && errors.Is(err, unix.EPERM) {
			return nil
		}
		return ignoreGone(err)
	})
}

// evictPatience is how long a dying tracer may hold a task.
const evictPatience = 200 * time.Millisecond

// awaitStops waits for the stops of threads that have been interrupted; those that have ended are no error.
func awaitStops(tids []int) error {
	for _, tid := range tids {
		if _, err := ptrace.AwaitStop(tid); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ECHILD) {
			return err
		}
	}
	return nil
}

// findEngines looks for engines in a task. The kernel may have merged their mappings with others, so it looks at each page.
func findEngines(pid int) ([]Area, error) {
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
	for i, m := range maps {
		if m.Perms != "rwxp" && m.Perms != "r-xp" || m.Ino != 0 || m.Name != "" {
			continue
		}
		end := m.End
		if m.Perms == "r-xp" && i+1 < len(maps) && maps[i+1].Start == end { // see Session.mapArea
			end = maps[i+1].End
		}
		if m.Start == engineHint { // perhaps nothing was written yet
			areas = append(areas, Area{m.Start, end - m.Start})
			continue
		}
		for at := m.Start; at+arch.BlobPage <= m.End; at += arch.BlobPage {
			if ptrace.ReadMemory(pid, at, page) != nil || !bytes.HasPrefix(page, want) || le.Uint64(page[labelOffset:]) != labelMagic {
				continue
			}
			if size := le.Uint64(page[labelOffset+8:]); size <= end-at {
				areas = append(areas, Area{at, size})
			}
		}
	}
	return areas, nil
}

// ignoreGone drops the error of a task that has ended.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

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
			err := ptrace.Seize(tid, 0)
			for errors.Is(err, unix.EPERM) && pause(ctx) { // its dying tracer has not let go
				err = ptrace.Seize(tid, 0)
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

// pause waits a little, and returns false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-time.After(evictPause):
		return true
	case <-ctx.Done():
		return false
	}
}

// stopOutside waits until all threads have stopped outside of areas, and returns those that have not ended meanwhile.
func stopOutside(ctx context.Context, tids []int, areas []Area) (stopped []int, err error) {
	for _, tid := range tids {
		var err error
		inside := true
		for err == nil {
			if inside, err = isInside(tid, areas); err != nil || !inside {
				break
			}
			if err = ptrace.Cont(tid, 0); err == nil && !pause(ctx) {
				err = fmt.Errorf("thread %d does not leave the program it runs: %w", tid, ctx.Err())
			}
			if err == nil {
				err = stopAgain(tid)
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

func isInside(tid int, areas []Area) (bool, error) {
	var regs arch.Regs
	err := ptrace.GetRegs(tid, &regs)
	return slices.ContainsFunc(areas, func(a Area) bool { return regs.PC()-a.Start < a.Size }), err
}

// stopAgain stops a thread that was let go on. One that has stopped by itself, as a thread in a group-stop may, is not
// interrupted once more: the second interrupt would stop it again before it has done a single instruction.
func stopAgain(tid int) error {
	for {
		st, ok, err := ptrace.Poll(tid)
		switch {
		case err != nil:
			return err
		case !ok:
			_, err = ptrace.Stop(tid)
			return err
		case st.Gone():
			return fmt.Errorf("%v: %w", st, unix.ESRCH)
		case st.Event() == ptrace.EventStop:
			return nil
		}
		sig := st.StopSignal()
		if st.Event() != 0 || st.SyscallStop() {
			sig = 0
		}
		if err := ptrace.Cont(tid, sig); err != nil {
			return err
		}
	}
}

// unmapArea unmaps an area by a stopped thread outside of it.
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
	return s.Eject()
}
