package vma

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"sync"

	"cryo/internal/procfs"
)

// Flags are the properties of a mapping that only the VmFlags line of /proc/PID/smaps tells.
type Flags uint32

// The flags that matter to a dump, with the two letters the kernel prints for them.
const (
	GrowsDown   Flags = 1 << iota // gd: a stack
	Locked                        // lo: mlock
	LockOnFault                   // lf: mlock2(MLOCK_ONFAULT)
	NoReserve                     // nr: MAP_NORESERVE
	Hugetlb                       // ht
	Droppable                     // dp: MAP_DROPPABLE, Linux 6.11
	Sequential                    // sr: MADV_SEQUENTIAL
	Random                        // rr: MADV_RANDOM
	DontFork                      // dc: MADV_DONTFORK
	DontDump                      // dd: MADV_DONTDUMP
	Mergeable                     // mg: MADV_MERGEABLE
	HugePage                      // hg: MADV_HUGEPAGE
	NoHugePage                    // nh: MADV_NOHUGEPAGE
	WipeOnFork                    // wf: MADV_WIPEONFORK
	IO                            // io: memory of a device
	PFNMap                        // pf: pages without a struct page
	ShadowStack                   // ss
	UffdMissing                   // um: registered with a userfaultfd
	UffdWP                        // uw: the same, write protection
	UffdMinor                     // ui: the same, minor faults
	Sealed                        // sl: mseal, Linux 6.10
)

var flagLetters = map[[2]byte]Flags{
	{'g', 'd'}: GrowsDown, {'l', 'o'}: Locked, {'l', 'f'}: LockOnFault, {'n', 'r'}: NoReserve,
	{'h', 't'}: Hugetlb, {'d', 'p'}: Droppable, {'s', 'r'}: Sequential, {'r', 'r'}: Random,
	{'d', 'c'}: DontFork, {'d', 'd'}: DontDump, {'m', 'g'}: Mergeable, {'h', 'g'}: HugePage,
	{'n', 'h'}: NoHugePage, {'w', 'f'}: WipeOnFork, {'i', 'o'}: IO, {'p', 'f'}: PFNMap,
	{'s', 's'}: ShadowStack, {'u', 'm'}: UffdMissing, {'u', 'w'}: UffdWP, {'u', 'i'}: UffdMinor,
	{'s', 'l'}: Sealed,
}

// flagByLetters is flagLetters to be looked up often: each mapping has some ten flags, most of which do not matter.
var flagByLetters = func() (table [1 << 10]Flags) {
	for letters, fl := range flagLetters {
		table[letterIndex(letters[0], letters[1])] = fl
	}
	return table
}()

// letterIndex numbers pairs of lower case letters.
func letterIndex(a, b byte) int { return int(a&31)<<5 | int(b&31) }

// TaskFlags are the flags of all mappings of a task.
type TaskFlags struct {
	pid  int
	list []startFlags // by address
}

type startFlags struct {
	start uint64
	flags Flags
}

// ReadFlags reads the flags of all mappings of task pid. It takes the kernel 3 microseconds a mapping, more than all else
// that is asked of one.
func ReadFlags(pid int) (*TaskFlags, error) {
	f, err := procfs.OpenFile(pid, "smaps")
	if err != nil {
		return nil, fmt.Errorf("flags of the mappings of task %d: %w", pid, err)
	}
	defer f.Close()
	t := &TaskFlags{pid: pid}
	err = scanFlags(f, func(start uint64, fl Flags) bool {
		t.list = append(t.list, startFlags{start, fl})
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("flags of the mappings of task %d: %w", pid, err)
	}
	return t, nil
}

// FlagsAt reads the flags of the mapping of task pid that begins at start; 0 if none does.
func FlagsAt(pid int, start uint64) (flags Flags, err error) {
	f, err := procfs.OpenFile(pid, "smaps")
	if err == nil {
		defer f.Close()
		err = scanFlags(f, func(at uint64, fl Flags) bool {
			if at == start {
				flags = fl
			}
			return at < start
		})
	}
	if err != nil {
		return 0, fmt.Errorf("flags of the mappings of task %d: %w", pid, err)
	}
	return flags, nil
}

// Of returns the flags of the given mappings, one for each, in their order. They are those of List and the task has
// not run since; a mapping that smaps did not show is an error.
func (t *TaskFlags) Of(maps []Mapping) ([]Flags, error) {
	flags := make([]Flags, len(maps))
	rest := t.list
	for i, m := range maps {
		for len(rest) > 0 && rest[0].start < m.Start {
			rest = rest[1:]
		}
		if len(rest) == 0 || rest[0].start != m.Start {
			return nil, fmt.Errorf("mapping %x of task %d is gone, does the task run?", m.Start, t.pid)
		}
		flags[i] = rest[0].flags
	}
	return flags, nil
}

var vmFlags = []byte("\nVmFlags:")

// smapsBuffer is how much is read at a time.
const smapsBuffer = 64 << 10

// smapsBuffers are those not in use.
var smapsBuffers = sync.Pool{New: func() any { return new([smapsBuffer]byte) }}

// scanFlags finds the VmFlags lines of smaps. They end the record of a mapping, so the next line begins
// the next one; the 20 lines between are jumped over, as parsing them would cost as much as the kernel
// takes to print them.
func scanFlags(r io.Reader, found func(start uint64, fl Flags) (more bool)) error {
	room := smapsBuffers.Get().(*[smapsBuffer]byte)
	defer smapsBuffers.Put(room)
	buf := room[:0]
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		rest := buf
		for {
			record, line, after, ok := cutRecord(rest)
			if !ok {
				break
			}
			start, perr := recordStart(record)
			if perr != nil {
				return perr
			}
			if !found(start, parseFlags(line)) {
				return nil
			}
			rest = after
		}
		if len(rest) == cap(buf) {
			return fmt.Errorf("a record of smaps is longer than %d bytes", cap(buf))
		}
		buf = buf[:copy(buf[:cap(buf)], rest)]
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// cutRecord cuts the first whole record off text: up to its VmFlags line, the letters in that, what follows.
func cutRecord(text []byte) (record, letters, after []byte, ok bool) {
	at := bytes.Index(text, vmFlags)
	if at < 0 {
		return nil, nil, nil, false
	}
	letters, after, ok = bytes.Cut(text[at+len(vmFlags):], []byte("\n"))
	return text[:at], letters, after, ok
}

func recordStart(record []byte) (uint64, error) {
	start, _, _ := bytes.Cut(record[:min(len(record), 17)], []byte("-"))
	n, err := strconv.ParseUint(string(start), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("record of smaps begins with %q", record[:min(len(record), 40)])
	}
	return n, nil
}

func parseFlags(letters []byte) (fl Flags) {
	for len(letters) >= 2 {
		if letters[0] == ' ' {
			letters = letters[1:]
			continue
		}
		fl |= flagByLetters[letterIndex(letters[0], letters[1])]
		letters = letters[2:]
	}
	return fl
}
