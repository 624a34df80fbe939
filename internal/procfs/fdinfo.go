package procfs

import (
	"bytes"
	"iter"
	"strconv"
)

// FDInfo is /proc/PID/fdinfo/FD.
type FDInfo struct {
	Pos int64
	// Flags are the open flags; O_CLOEXEC stands for the descriptor's close-on-exec.
	Flags uint32
	// MntID is the mount the file was opened on (Linux 3.15); -1 when the kernel does not say.
	MntID int
	// Ino is the inode number (Linux 5.14); 0 when the kernel does not say.
	Ino uint64
	// Rest are the lines of the file's own kind (eventfd-count, lock, Pid ...).
	Rest []byte
}

// FDInfo reads /proc/PID/fdinfo/FD. This is the most expensive question about a descriptor: ask once.
func (d *Dir) FDInfo(fd int) (*FDInfo, error) {
	entry := "fdinfo/" + strconv.Itoa(fd)
	var room [512]byte
	buf := room[:]
	n, err := d.readInto(entry, &buf, true)
	if err != nil {
		return nil, err
	}
	return ParseFDInfo(d.Path(entry), buf[:n])
}

// ParseFDInfo parses the contents of an fdinfo file; name is for errors. It keeps no reference to b.
func ParseFDInfo(name string, b []byte) (*FDInfo, error) {
	info := &FDInfo{MntID: -1}
	seen := false
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		key, value, _ := bytes.Cut(line, []byte{':'})
		v := string(bytes.TrimSpace(value))
		var err error
		switch string(key) {
		case "pos":
			info.Pos, err = strconv.ParseInt(v, 10, 64)
			seen = true
		case "flags":
			var n uint64
			n, err = strconv.ParseUint(v, 8, 32)
			info.Flags = uint32(n)
		case "mnt_id":
			info.MntID, err = strconv.Atoi(v)
		case "ino":
			info.Ino, err = strconv.ParseUint(v, 10, 64)
		default:
			info.Rest = append([]byte(nil), b...)
			rest = nil
		}
		if err != nil {
			return nil, &FormatError{name, string(line)}
		}
		b = rest
	}
	if !seen {
		return nil, &FormatError{name, string(info.Rest)}
	}
	return info, nil
}

// Field is the value of a line of the file's own kind, "" if there is none.
func (f *FDInfo) Field(name string) string {
	for value := range f.Lines(name) {
		return value
	}
	return ""
}

// Lines goes over the values of all lines with a name.
func (f *FDInfo) Lines(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range bytes.Lines(f.Rest) {
			key, value, ok := bytes.Cut(line, []byte{':'})
			if ok && string(bytes.TrimSpace(key)) == name && !yield(string(bytes.TrimSpace(value))) {
				return
			}
		}
	}
}
