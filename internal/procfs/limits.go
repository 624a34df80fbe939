package procfs

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// Limit is one resource limit; Infinity stands for none.
type Limit struct{ Cur, Max uint64 }

// Infinity is RLIM_INFINITY.
const Infinity = math.MaxUint64

// NumLimits is RLIM_NLIMITS.
const NumLimits = 16

// limitNames are the lines of /proc/PID/limits by resource number (RLIMIT_CPU = 0 ...).
var limitNames = [NumLimits]string{
	"Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set",
	"Max processes", "Max open files", "Max locked memory", "Max address space", "Max file locks",
	"Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
}

// Limits reads /proc/PID/limits: what prlimit(2) says, without the CAP_SYS_RESOURCE it wants for other users' tasks.
func (d *Dir) Limits() ([NumLimits]Limit, error) {
	b, err := d.Read("limits")
	if err != nil {
		return [NumLimits]Limit{}, err
	}
	return ParseLimits(d.Path("limits"), b)
}

// ParseLimits parses the contents of a limits file; name is for errors.
func ParseLimits(name string, b []byte) (limits [NumLimits]Limit, err error) {
	found := 0
	for line := range bytes.Lines(b) {
		for i, prefix := range limitNames {
			rest, ok := strings.CutPrefix(string(line), prefix+" ")
			if !ok {
				continue
			}
			f := strings.Fields(rest)
			if len(f) < 2 {
				return limits, &FormatError{name, string(line)}
			}
			cur, err1 := limit(f[0])
			max, err2 := limit(f[1])
			if err1 != nil || err2 != nil {
				return limits, &FormatError{name, string(line)}
			}
			limits[i] = Limit{cur, max}
			found++
		}
	}
	if found != NumLimits {
		return limits, &FormatError{name, string(b)}
	}
	return limits, nil
}

func limit(s string) (uint64, error) {
	if s == "unlimited" {
		return Infinity, nil
	}
	return strconv.ParseUint(s, 10, 64)
}
