package procfs

import (
	"bytes"
	"strconv"
	"strings"
)

// Mapping is one line of /proc/PID/maps.
type Mapping struct {
	Start, End uint64
	Perms      string // "rwxp" or "rwxs", '-' for what is missing
	Offset     uint64
	Major      uint32
	Minor      uint32
	Ino        uint64
	// Name is a path, a name in brackets ("[stack]"), or empty. Newlines in paths are written \012 by the kernel.
	Name string
}

// Maps reads /proc/PID/maps: the way for kernels without PROCMAP_QUERY (before 6.11), and for whoever needs all at
// once.
func (d *Dir) Maps() ([]Mapping, error) {
	b, err := d.ReadList("maps")
	if err != nil {
		return nil, err
	}
	return ParseMaps(d.Path("maps"), b)
}

// ParseMaps parses the contents of a maps file; name is for errors.
func ParseMaps(name string, b []byte) ([]Mapping, error) {
	list := make([]Mapping, 0, bytes.Count(b, []byte{'\n'}))
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		b = rest
		m, ok := parseMapping(string(line))
		if !ok {
			return nil, &FormatError{name, string(line)}
		}
		list = append(list, m)
	}
	return list, nil
}

func parseMapping(line string) (m Mapping, ok bool) {
	var f [5]string
	rest := line
	for i := range f {
		f[i], rest, _ = strings.Cut(rest, " ")
	}
	start, end, _ := strings.Cut(f[0], "-")
	major, minor, _ := strings.Cut(f[3], ":")
	ok = len(f[1]) == 4
	hex := func(s string, bits int) uint64 {
		v, err := strconv.ParseUint(s, 16, bits)
		ok = ok && err == nil
		return v
	}
	m = Mapping{
		Start: hex(start, 64), End: hex(end, 64), Perms: f[1], Offset: hex(f[2], 64),
		Major: uint32(hex(major, 32)), Minor: uint32(hex(minor, 32)), Name: strings.TrimLeft(rest, " "),
	}
	ino, err := strconv.ParseUint(f[4], 10, 64)
	m.Ino = ino
	return m, ok && err == nil && m.Start < m.End
}
