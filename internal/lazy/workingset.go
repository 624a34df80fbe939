package lazy

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// WorkingSet is the memory that tasks wanted first when they were restored before, so that it comes first when they are
// restored again. As a file it is text: a line a stretch, in the order in which they were wanted, with the pid of the task in
// the images, the address it was dumped at, and the number of pages.
type WorkingSet struct {
	path string
	mu   sync.Mutex
	old  map[int][]Range // what came first before; nil: this run records
	new  []wanted
}

// wanted is a stretch that was asked for.
type wanted struct {
	pid int
	Range
}

// maxWanted bounds what is recorded or read: by then a task has most of what it works with.
const maxWanted = 1 << 16

// OpenWorkingSet reads the file path. Where there is none, one is recorded and written there by Save.
func OpenWorkingSet(path string) (*WorkingSet, error) {
	w := &WorkingSet{path: path}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("working set: %w", err)
	}
	defer f.Close()
	w.old = map[int][]Range{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var pid int
		var addr, pages uint64
		if _, err := fmt.Sscanf(lines.Text(), "%d %x %d", &pid, &addr, &pages); err != nil || addr%pageSize != 0 || pages > 1<<36 || addr+pages*pageSize < addr {
			return nil, fmt.Errorf("working set %s: line %d is no stretch of memory: remove the file to record another", path, n)
		}
		if n > maxWanted {
			return nil, fmt.Errorf("working set %s: more than %d lines: remove the file to record another", path, maxWanted)
		}
		w.old[pid] = append(w.old[pid], Range{addr, addr + pages*pageSize})
	}
	return w, lines.Err()
}

// First is what is to come first of a task.
func (w *WorkingSet) First(pid int) []Range {
	if w == nil {
		return nil
	}
	return slices.Clone(w.old[pid])
}

// Note records that a task wanted something.
func (w *WorkingSet) Note(pid int, addr, n uint64) {
	if w == nil || w.old != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.new) < maxWanted {
		w.new = append(w.new, wanted{pid, Range{addr, addr + n}})
	}
}

// Save writes what was recorded, if that was done.
func (w *WorkingSet) Save() error {
	if w == nil || w.old != nil {
		return nil
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("working set: %w", err)
	}
	out := bufio.NewWriter(f)
	for _, r := range w.new {
		fmt.Fprintf(out, "%d %x %d\n", r.pid, r.Start, (r.End-r.Start)/pageSize)
	}
	if err := errors.Join(out.Flush(), f.Close()); err != nil {
		return fmt.Errorf("working set: %w", err)
	}
	return nil
}
