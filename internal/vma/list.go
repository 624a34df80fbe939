package vma

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"unsafe"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// List lists the mappings of task pid in the order of their addresses. It is a consistent picture only
// while nothing in the task runs. It asks by PROCMAP_QUERY where the kernel has it (6.11) and reads the
// text of /proc/PID/maps elsewhere.
func List(pid int) ([]Mapping, error) { return list(pid, query) }

// Range lists those mappings of task pid that lie in part between from and to, without the gate area.
func Range(pid int, from, to uint64) ([]Mapping, error) {
	maps, err := list(pid, func(fd int) ([]Mapping, error) { return queryRange(fd, from, to, 0) })
	return slices.DeleteFunc(maps, func(m Mapping) bool { return m.End <= from || m.Start >= to }), err
}

// Code lists the executable mappings of task pid, without the gate area.
func Code(pid int) ([]Mapping, error) {
	maps, err := list(pid, func(fd int) ([]Mapping, error) { return queryRange(fd, 0, ^uint64(0), queryExecutable) })
	return slices.DeleteFunc(maps, func(m Mapping) bool { return m.Prot&unix.PROT_EXEC == 0 || m.Name == vsyscallName }), err
}

func list(pid int, query func(fd int) ([]Mapping, error)) ([]Mapping, error) {
	f, err := procfs.OpenFile(pid, "maps")
	if err != nil {
		return nil, fmt.Errorf("mappings of task %d: %w", pid, err)
	}
	defer f.Close()
	maps, err := query(int(f.Fd()))
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		maps, err = parseMaps(f)
	}
	if err != nil {
		return nil, fmt.Errorf("mappings of task %d: %w", pid, err)
	}
	return maps, nil
}

// procmapQuery is struct procmap_query of linux/fs.h.
type procmapQuery struct {
	size, queryFlags, queryAddr uint64
	start, end, flags           uint64
	pageSize, offset, inode     uint64
	devMajor, devMinor          uint32
	nameSize, buildIDSize       uint32
	nameAddr                    unsafe.Pointer
	buildIDAddr                 uint64
}

const (
	procmapQueryIoctl   = 0xc0686611 // _IOWR('f', 17, struct procmap_query)
	queryCoveringOrNext = 0x10
	queryReadable       = 0x01
	queryWritable       = 0x02
	queryExecutable     = 0x04
	queryShared         = 0x08
)

// query walks the mappings by PROCMAP_QUERY. The gate area ([vsyscall]) is no mapping of the task and the
// ioctl does not know it; the text shows it in every task, so it is taken from this process.
func query(fd int) ([]Mapping, error) {
	maps, err := queryRange(fd, 0, ^uint64(0), 0)
	if gate := gateArea(); err == nil && gate != nil && len(maps) > 0 {
		maps = append(maps, *gate)
	}
	return maps, err
}

// queryRange walks the mappings that end after from, begin before to, and have the rights in only.
func queryRange(fd int, from, to, only uint64) ([]Mapping, error) {
	name := make([]byte, unix.PathMax+len(deletedSuffix)+1)
	var maps []Mapping
	addr := from
	for addr < to {
		q := procmapQuery{queryFlags: queryCoveringOrNext | only, queryAddr: addr,
			nameSize: uint32(len(name)), nameAddr: unsafe.Pointer(&name[0])}
		q.size = uint64(unsafe.Sizeof(q))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), procmapQueryIoctl, uintptr(unsafe.Pointer(&q)))
		if errno == unix.EINTR {
			continue
		}
		if errno == unix.ENOENT {
			break
		}
		if errno != 0 {
			return nil, os.NewSyscallError("PROCMAP_QUERY", errno)
		}
		m := Mapping{Start: q.start, End: q.end, Offset: q.offset, Inode: q.inode,
			Shared: q.flags&queryShared != 0, Prot: queryProt(q.flags)}
		if q.devMajor|q.devMinor != 0 {
			m.Dev = unix.Mkdev(q.devMajor, q.devMinor)
		}
		if m.Start >= to {
			break
		}
		if q.nameSize > 1 {
			m.Name = reuse(maps, name[:q.nameSize-1])
		}
		maps = append(maps, m)
		addr = q.end
	}
	return maps, nil
}

func queryProt(flags uint64) (prot uint32) {
	for _, b := range [...]struct {
		flag uint64
		prot uint32
	}{{queryReadable, unix.PROT_READ}, {queryWritable, unix.PROT_WRITE}, {queryExecutable, unix.PROT_EXEC}} {
		if flags&b.flag != 0 {
			prot |= b.prot
		}
	}
	return prot
}

// reuse makes a string of name; the segments of one file follow each other and share one string.
func reuse(maps []Mapping, name []byte) string {
	if n := len(maps); n > 0 && maps[n-1].Name == string(name) {
		return maps[n-1].Name
	}
	return string(name)
}

// gateArea is the vsyscall page of this machine, nil where it has none.
var gateArea = sync.OnceValue(func() *Mapping {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil
	}
	maps, err := parseMaps(bytes.NewReader(text))
	if err != nil || len(maps) == 0 || maps[len(maps)-1].Name != vsyscallName {
		return nil
	}
	return &maps[len(maps)-1]
})

// parseMaps reads the text of /proc/PID/maps.
func parseMaps(r io.Reader) ([]Mapping, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	lines, err := procfs.ParseMaps("maps", text)
	if err != nil {
		return nil, err
	}
	maps := make([]Mapping, 0, len(lines))
	for _, l := range lines {
		m := Mapping{Start: l.Start, End: l.End, Offset: l.Offset, Inode: l.Ino, Shared: l.Perms[3] == 's'}
		for i, bit := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
			if l.Perms[i] != '-' {
				m.Prot |= bit
			}
		}
		if l.Major|l.Minor != 0 {
			m.Dev = unix.Mkdev(l.Major, l.Minor)
		}
		m.Name = reuse(maps, unescape(l.Name))
		maps = append(maps, m)
	}
	return maps, nil
}

// unescape undoes the one escape of the text form, newlines as octal.
func unescape(name string) []byte {
	return bytes.ReplaceAll([]byte(name), []byte(`\012`), []byte("\n"))
}

// Pick is At in a list of mappings.
func Pick(maps []Mapping, addrs ...uint64) []Mapping {
	found := make([]Mapping, len(addrs))
	for i, addr := range addrs {
		at, _ := slices.BinarySearchFunc(maps, addr, func(m Mapping, addr uint64) int {
			if m.End <= addr {
				return -1
			}
			return 1
		})
		if at < len(maps) && maps[at].Start <= addr {
			found[i] = maps[at]
		}
	}
	return found
}

// At tells the mappings that hold the given addresses of task pid, without listing all; where no mapping holds an address
// its Size is 0. It needs PROCMAP_QUERY (kernel 6.11).
func At(pid int, addrs ...uint64) ([]Mapping, error) {
	f, err := procfs.OpenFile(pid, "maps")
	if err != nil {
		return nil, fmt.Errorf("mappings of task %d: %w", pid, err)
	}
	defer f.Close()
	var name [64]byte // enough for the special names; longer ones fail with ENAMETOOLONG
	maps := make([]Mapping, len(addrs))
	for i, addr := range addrs {
		q := procmapQuery{queryAddr: addr, nameSize: uint32(len(name)), nameAddr: unsafe.Pointer(&name[0])}
		q.size = uint64(unsafe.Sizeof(q))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), procmapQueryIoctl, uintptr(unsafe.Pointer(&q)))
		if errno == unix.ENAMETOOLONG {
			q.nameSize, q.nameAddr = 0, nil
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, f.Fd(), procmapQueryIoctl, uintptr(unsafe.Pointer(&q)))
		}
		switch {
		case errno == unix.ENOENT:
			continue
		case errno != 0:
			return nil, fmt.Errorf("mappings of task %d: %w", pid, os.NewSyscallError("PROCMAP_QUERY", errno))
		}
		maps[i] = Mapping{Start: q.start, End: q.end, Offset: q.offset, Inode: q.inode,
			Shared: q.flags&queryShared != 0, Prot: queryProt(q.flags)}
		if q.nameSize > 1 {
			maps[i].Name = string(name[:q.nameSize-1])
		}
	}
	return maps, nil
}
