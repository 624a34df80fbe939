// Package procfs reads /proc/PID into typed values.
//
// Everything is read relative to one descriptor of /proc/PID ([Dir]): a pid that is reused while it is being looked at
// answers ESRCH instead of another task's state. Parsers are pure functions of bytes, take what every kernel since 3.11
// prints, and leave fields that an older kernel lacks at their zero value or, where zero has a meaning, say so.
package procfs

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"cryo/internal/spread"

	"golang.org/x/sys/unix"
)

// Dir is an open /proc/PID, or /proc/PID/task/TID.
type Dir struct {
	fd   int
	name string
}

// OpenTask opens /proc/PID.
func OpenTask(pid int) (*Dir, error) { return open(fmt.Sprintf("/proc/%d", pid)) }

// OpenThread opens /proc/PID/task/TID.
func OpenThread(pid, tid int) (*Dir, error) { return open(fmt.Sprintf("/proc/%d/task/%d", pid, tid)) }

func open(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Dir{fd: fd, name: path}, nil
}

// OpenFile opens /proc/PID/NAME for whoever reads it piece by piece. What os.Open does more, trying whether the file can
// be waited for, no file of /proc/PID has a use for.
func OpenFile(pid int, name string) (*os.File, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Close gives the descriptor back.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Fd is the descriptor of the directory (O_PATH), for calls of the *at family. It belongs to d.
func (d *Dir) Fd() int { return d.fd }

// Name is the directory's path, for messages.
func (d *Dir) Name() string { return d.name }

// Path is the full name of an entry; use it only for messages and for calls that take no directory.
func (d *Dir) Path(entry string) string { return d.name + "/" + entry }

// Read returns the whole contents of an entry that the kernel prints in one piece, as it does all but lists of records
// (maps, children ...): those end with the first read that does not fill its buffer.
func (d *Dir) Read(entry string) ([]byte, error) {
	return d.readPooled(entry, true)
}

// ReadList returns the whole contents of any entry.
func (d *Dir) ReadList(entry string) ([]byte, error) {
	return d.readPooled(entry, false)
}

// readBuffers are large enough for most files, whose contents are mostly short: what is kept is a copy.
var readBuffers = sync.Pool{New: func() any { buf := make([]byte, 4096); return &buf }}

func (d *Dir) readPooled(entry string, onePiece bool) ([]byte, error) {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	n, err := d.readInto(entry, buf, onePiece)
	return bytes.Clone((*buf)[:n]), err
}

// readInto reads an entry into *buf, growing it as needed, and returns the length.
func (d *Dir) readInto(entry string, buf *[]byte, onePiece bool) (int, error) {
	fd, err := unix.Openat(d.fd, entry, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: d.Path(entry), Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for {
		if n == len(*buf) {
			*buf = append(*buf, make([]byte, len(*buf))...)
		}
		m, err := unix.Read(fd, (*buf)[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, &os.PathError{Op: "read", Path: d.Path(entry), Err: err}
		}
		n += m
		if m == 0 || onePiece && n < len(*buf) {
			return n, nil
		}
	}
}

// Readlink returns what an entry points to, as the kernel prints it (with " (deleted)" where it says so).
func (d *Dir) Readlink(entry string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, entry, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: d.Path(entry), Err: err}
	}
	return string(buf[:n]), nil
}

// Open opens what an entry leads to.
func (d *Dir) Open(entry string, flags int) (int, error) {
	fd, err := unix.Openat(d.fd, entry, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: d.Path(entry), Err: err}
	}
	return fd, nil
}

// Fstat describes what an entry leads to (it follows the link).
func (d *Dir) Fstat(entry string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, entry, &st, 0); err != nil {
		return st, &os.PathError{Op: "stat", Path: d.Path(entry), Err: err}
	}
	return st, nil
}

// Threads returns the thread ids of a task, ascending.
func (d *Dir) Threads() ([]int, error) { return d.numbers("task") }

// FDs returns the numbers of a task's open descriptors, ascending.
func (d *Dir) FDs() ([]int, error) { return d.numbers("fd") }

// numbers lists a directory whose entries are numbers.
func (d *Dir) numbers(entry string) ([]int, error) {
	fd, err := d.Open(entry, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var list []int
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "readdir", Path: d.Path(entry), Err: err}
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if n, err := strconv.Atoi(name); err == nil {
				list = append(list, n)
			}
		}
	}
	sort.Ints(list)
	return list, nil
}

// Children returns the pids of a task's children, from the children file of every thread (Linux 3.5,
// CONFIG_PROC_CHILDREN). Children that are created or reparented meanwhile may be missed: list again until nothing new
// appears. The order is the kernel's: oldest first.
func (d *Dir) Children(tids []int) ([]int, error) {
	lists := make([][]int, len(tids))
	err := spread.Range(len(tids), childrenChunk, func(i int) (err error) {
		lists[i], err = d.childrenOf(tids[i])
		if os.IsNotExist(err) && len(tids) > 1 {
			return nil // the thread has gone; its children went to a sibling
		}
		return err
	})
	return slices.Concat(lists...), err
}

// childrenChunk is how many threads are asked for their children at a time.
const childrenChunk = 64

// childrenOf returns the pids of one thread's children.
func (d *Dir) childrenOf(tid int) ([]int, error) {
	b, err := d.ReadList("task/" + strconv.Itoa(tid) + "/children")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, &FormatError{d.Path("children"), f}
		}
		list = append(list, n)
	}
	return list, nil
}

// FormatError is text the kernel should not have printed.
type FormatError struct{ File, Text string }

func (e *FormatError) Error() string {
	text := e.Text
	if len(text) > 80 {
		text = text[:80]
	}
	return fmt.Sprintf("%s has an unknown format: %q", e.File, text)
}
