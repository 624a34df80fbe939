package procfs

import (
	"bytes"
	"strconv"
	"strings"
)

// Stat is /proc/PID/stat: the fields a dump needs, in the names of proc_pid_stat(5).
type Stat struct {
	Pid   int
	Comm  string
	State byte // 'R', 'S', 'D', 'T', 't', 'Z', 'X', 'I'
	PPid  int
	PGrp  int
	// Session is the session id in the reader's pid namespace; 0 when the leader is outside of it.
	Session   int
	TTY       int32 // device number of the controlling terminal, 0 for none
	TTYGroup  int   // foreground process group of that terminal, -1 for none
	Flags     uint64
	Nice      int
	Threads   int
	StartTime uint64 // in clock ticks since boot

	StartCode, EndCode, StartStack uint64
	StartData, EndData, StartBrk   uint64
	ArgStart, ArgEnd               uint64
	EnvStart, EnvEnd               uint64
	// ExitCode is the wait status; valid in state Z (and 0 for those without leave to ptrace the task).
	ExitCode int
}

// Stat reads /proc/PID/stat. The addresses are zero without leave to ptrace the task.
func (d *Dir) Stat() (*Stat, error) {
	b, err := d.Read("stat")
	if err != nil {
		return nil, err
	}
	return ParseStat(d.Path("stat"), b)
}

// ParseStat parses the contents of a stat file; name is for errors.
func ParseStat(name string, b []byte) (*Stat, error) {
	// The command may contain anything, parentheses too: its end is the last one.
	l, r := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if l < 1 || r < l || r+2 > len(b) {
		return nil, &FormatError{name, string(b)}
	}
	f := strings.Fields(string(b[r+1:]))
	if len(f) < 42 || len(f[0]) != 1 { // up to 44: Linux 2.6.24
		return nil, &FormatError{name, string(b)}
	}
	ok := true
	num := func(field int) uint64 {
		if field-3 >= len(f) {
			return 0
		}
		v, err := strconv.ParseUint(f[field-3], 10, 64)
		if err != nil {
			s, e := strconv.ParseInt(f[field-3], 10, 64)
			v, ok = uint64(s), ok && e == nil
		}
		return v
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:l])))
	s := &Stat{
		Pid: pid, Comm: string(b[l+1 : r]), State: f[0][0],
		PPid: int(num(4)), PGrp: int(num(5)), Session: int(num(6)), TTY: int32(num(7)), TTYGroup: int(num(8)), Flags: num(9),
		Nice: int(num(19)), Threads: int(num(20)), StartTime: num(22),
		StartCode: num(26), EndCode: num(27), StartStack: num(28),
		StartData: num(45), EndData: num(46), StartBrk: num(47),
		ArgStart: num(48), ArgEnd: num(49), EnvStart: num(50), EnvEnd: num(51), ExitCode: int(num(52)),
	}
	if err != nil || !ok {
		return nil, &FormatError{name, string(b)}
	}
	return s, nil
}
