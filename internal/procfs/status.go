package procfs

import (
	"strconv"
	"strings"
)

// Status is /proc/PID/status of a task or thread.
type Status struct {
	Umask int // -1 before Linux 4.7
	State byte
	PPid  int
	// TracerPid is the pid of whoever traces the thread, 0 for nobody.
	TracerPid int
	// Real, effective, saved and filesystem ids.
	Uid, Gid [4]uint32
	Groups   []uint32
	FDSize   int // of the descriptor table: all numbers are below
	// NSpid, NStgid, NSpgid and NSsid list the ids from the reader's pid namespace down to the task's own (Linux 4.1);
	// empty before.
	NSpid, NStgid, NSpgid, NSsid []int

	SigPnd, ShdPnd, SigBlk, SigIgn, SigCgt uint64
	CapInh, CapPrm, CapEff, CapBnd, CapAmb uint64

	NoNewPrivs bool // false before Linux 4.10
	// Seccomp is the mode: 0 disabled, 1 strict, 2 filter.
	Seccomp int
	// SeccompFilters is the number of filters (Linux 5.9); -1 when the kernel does not say.
	SeccompFilters int
	Threads        int
	// THPDisabled says that huge pages are forbidden by prctl (Linux 5.0 prints it as THP_enabled: 0).
	THPDisabled bool
	VmLck       uint64 // KiB
	VmRSS       uint64 // KiB
	RssAnon     uint64 // KiB, 0 before Linux 4.5
}

// Status reads /proc/PID/status.
func (d *Dir) Status() (*Status, error) { return d.StatusOf("status") }

// ThreadStatus reads /proc/PID/task/TID/status.
func (d *Dir) ThreadStatus(tid int) (*Status, error) {
	return d.StatusOf("task/" + strconv.Itoa(tid) + "/status")
}

// StatusOf reads the status file with the given name under d.
func (d *Dir) StatusOf(entry string) (*Status, error) {
	b, err := d.Read(entry)
	if err != nil {
		return nil, err
	}
	return ParseStatus(d.Path(entry), b)
}

// ParseStatus parses the contents of a status file; name is for errors.
func ParseStatus(name string, b []byte) (*Status, error) {
	s := &Status{Umask: -1, SeccompFilters: -1}
	p := statusParser{name: name}
	for line := range strings.Lines(string(b)) {
		if key, value, found := strings.Cut(line, ":"); found {
			p.line(s, key, strings.TrimSpace(value))
		}
	}
	return s, p.err
}

// statusParser keeps the first error, so that a line is one statement.
type statusParser struct {
	name string
	err  error
}

func (p *statusParser) line(s *Status, key, v string) {
	switch key {
	case "Umask":
		s.Umask = int(p.num(v, 8))
	case "State":
		if v != "" {
			s.State = v[0]
		}
	case "PPid":
		s.PPid = int(p.num(v, 10))
	case "TracerPid":
		s.TracerPid = int(p.num(v, 10))
	case "Uid":
		p.four(v, &s.Uid)
	case "Gid":
		p.four(v, &s.Gid)
	case "Groups":
		for _, f := range strings.Fields(v) {
			s.Groups = append(s.Groups, uint32(p.num(f, 10)))
		}
	case "FDSize":
		s.FDSize = int(p.num(v, 10))
	case "NSpid":
		s.NSpid = p.ints(v)
	case "NStgid":
		s.NStgid = p.ints(v)
	case "NSpgid":
		s.NSpgid = p.ints(v)
	case "NSsid":
		s.NSsid = p.ints(v)
	case "Threads":
		s.Threads = int(p.num(v, 10))
	case "NoNewPrivs":
		s.NoNewPrivs = v == "1"
	case "Seccomp":
		s.Seccomp = int(p.num(v, 10))
	case "Seccomp_filters":
		s.SeccompFilters = int(p.num(v, 10))
	case "THP_enabled":
		s.THPDisabled = v == "0"
	case "VmLck":
		s.VmLck = p.num(strings.TrimSuffix(v, " kB"), 10)
	case "VmRSS":
		s.VmRSS = p.num(strings.TrimSuffix(v, " kB"), 10)
	case "RssAnon":
		s.RssAnon = p.num(strings.TrimSuffix(v, " kB"), 10)
	default:
		if m := s.mask(key); m != nil {
			*m = p.num(v, 16)
		}
	}
}

// mask is the field of a line that holds a set in hex, nil for any other.
func (s *Status) mask(key string) *uint64 {
	switch key {
	case "SigPnd":
		return &s.SigPnd
	case "ShdPnd":
		return &s.ShdPnd
	case "SigBlk":
		return &s.SigBlk
	case "SigIgn":
		return &s.SigIgn
	case "SigCgt":
		return &s.SigCgt
	case "CapInh":
		return &s.CapInh
	case "CapPrm":
		return &s.CapPrm
	case "CapEff":
		return &s.CapEff
	case "CapBnd":
		return &s.CapBnd
	case "CapAmb":
		return &s.CapAmb
	}
	return nil
}

func (p *statusParser) num(v string, base int) uint64 {
	n, err := strconv.ParseUint(v, base, 64)
	if err != nil && p.err == nil {
		p.err = &FormatError{p.name, v}
	}
	return n
}

func (p *statusParser) four(v string, ids *[4]uint32) {
	f := strings.Fields(v)
	if len(f) != 4 {
		p.err = &FormatError{p.name, v}
		return
	}
	for i := range ids {
		ids[i] = uint32(p.num(f[i], 10))
	}
}

func (p *statusParser) ints(v string) []int {
	var list []int
	for _, f := range strings.Fields(v) {
		list = append(list, int(p.num(f, 10)))
	}
	return list
}
