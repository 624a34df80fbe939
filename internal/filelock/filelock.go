// Package filelock has the words of filelocks.img, and reads file locks as the kernel lists them: in /proc/PID/fdinfo/FD
// (Linux 4.1), "lock:" lines in the format of /proc/locks, and there.
package filelock

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what a lock belongs to and how it was taken.
type Kind uint32

// The kinds, as images number them.
const (
	POSIX Kind = 1 // fcntl F_SETLK: of a descriptor table
	Flock Kind = 2 // flock: of an open file
	OFD   Kind = 4 // fcntl F_OFD_SETLK (Linux 3.15): of an open file
	Lease Kind = 8 // fcntl F_SETLEASE: of an open file
)

func (k Kind) String() string {
	for name, kind := range kinds {
		if k == kind {
			return name
		}
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// kinds are the names the kernel gives them.
var kinds = map[string]Kind{"POSIX": POSIX, "FLOCK": Flock, "OFDLCK": OFD, "LEASE": Lease}

// Breaking is added in images to the type of a lease that somebody wants to be given up; the type is then that which is
// to remain of it.
const Breaking = 4

var types = map[string]uint32{"READ": unix.F_RDLCK, "WRITE": unix.F_WRLCK, "UNLCK": unix.F_UNLCK}

// Lock is one lock.
type Lock struct {
	Kind     Kind
	Type     uint32 // F_RDLCK, F_WRLCK or F_UNLCK
	Breaking bool
	Start    int64
	Len      int64 // 0: to the end of the file, however it grows
}

// Parse reads one line: "1: POSIX  ADVISORY  WRITE 12 08:01:34 0 EOF".
func Parse(line string) (*Lock, error) {
	const words = 8
	f := strings.Fields(line)
	if len(f) != words {
		return nil, fmt.Errorf("lock %q has an unknown format", line)
	}
	l := &Lock{Kind: kinds[f[1]], Breaking: f[2] == "BREAKING"}
	typ, known := types[f[3]]
	if l.Kind == 0 || !known || f[2] == "MSNFS" {
		return nil, fmt.Errorf("lock %q is of an unknown kind", line)
	}
	l.Type = typ
	start, err := strconv.ParseInt(f[6], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("lock %q: %w", line, err)
	}
	l.Start = start
	if f[7] == "EOF" {
		return l, nil
	}
	end, err := strconv.ParseInt(f[7], 10, 64)
	if err != nil || end < start {
		return nil, fmt.Errorf("lock %q ends nowhere", line)
	}
	l.Len = end - start + 1
	return l, nil
}

// Files are those that have locks.
type Files map[file]bool

type file struct{ dev, ino uint64 }

// Has says whether a file has locks, by the numbers of its super block and inode: for most file systems those that stat(2)
// tells.
func (f Files) Has(dev, ino uint64) bool { return f[file{dev, ino}] }

// initialPidNamespace is the inode number of the first pid namespace (Linux 3.8).
const initialPidNamespace = 0xEFFFFFFC

// Locked reads which files have locks from /proc/locks. That is complete only in the initial pid namespace: elsewhere it
// leaves out locks that were taken by a process which has ended.
func Locked() (Files, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil || st.Ino != initialPidNamespace {
		return nil, fmt.Errorf("not in the initial pid namespace: %w", errors.Join(err, unix.ENOSYS))
	}
	list, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, err
	}
	return parseLocked(string(list))
}

// parseLocked takes lines as Parse does; those of who waits for a lock ("1: -> POSIX ...") are of a file that has one.
func parseLocked(list string) (Files, error) {
	files := Files{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) > 1 && f[1] == "->" {
			continue
		}
		const where = 5
		if len(f) <= where {
			return nil, fmt.Errorf("lock %q has an unknown format", line)
		}
		var major, minor uint32
		var ino uint64
		if f[where] == "<none>:0" {
			continue
		}
		if _, err := fmt.Sscanf(f[where], "%x:%x:%d", &major, &minor, &ino); err != nil {
			return nil, fmt.Errorf("lock %q has an unknown format: %w", line, err)
		}
		files[file{unix.Mkdev(major, minor), ino}] = true
	}
	return files, nil
}
