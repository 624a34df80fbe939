package procfs

import (
	"bytes"
	"fmt"
)

// Timer is one POSIX timer as /proc/PID/timers lists it (Linux 3.10, CONFIG_CHECKPOINT_RESTORE): what it is, not how
// it is set; that only the task can ask, with timer_gettime(2).
type Timer struct {
	ID     int
	Signal int
	Value  uint64 // sigev_value
	// Notify is the SIGEV_ value: 0 signal, 1 none, 2 thread; Tid the thread for SIGEV_THREAD_ID, the task otherwise.
	Notify int
	Thread bool // SIGEV_THREAD_ID
	Tid    int
	Clock  int
}

// Timers reads /proc/PID/timers.
func (d *Dir) Timers() ([]Timer, error) {
	b, err := d.ReadList("timers")
	if err != nil {
		return nil, err
	}
	return ParseTimers(d.Path("timers"), b)
}

// ParseTimers parses the contents of a timers file; name is for errors.
func ParseTimers(name string, b []byte) ([]Timer, error) {
	var list []Timer
	for len(bytes.TrimSpace(b)) > 0 {
		var lines [4]string
		for i := range lines {
			line, rest, _ := bytes.Cut(b, []byte{'\n'})
			lines[i], b = string(line), rest
		}
		var t Timer
		var how, whom string
		if n, _ := fmt.Sscanf(lines[0], "ID: %d", &t.ID); n != 1 {
			return nil, &FormatError{name, lines[0]}
		}
		if n, _ := fmt.Sscanf(lines[1], "signal: %d/%x", &t.Signal, &t.Value); n != 2 {
			return nil, &FormatError{name, lines[1]}
		}
		if err := parseNotify(lines[2], &how, &whom, &t.Tid); err != nil {
			return nil, &FormatError{name, lines[2]}
		}
		t.Notify = map[string]int{"signal": 0, "none": 1, "thread": 2}[how]
		t.Thread = whom == "tid"
		if n, _ := fmt.Sscanf(lines[3], "ClockID: %d", &t.Clock); n != 1 {
			return nil, &FormatError{name, lines[3]}
		}
		list = append(list, t)
	}
	return list, nil
}

// parseNotify takes "notify: signal/pid.123" apart.
func parseNotify(line string, how, whom *string, id *int) error {
	rest, ok := bytes.CutPrefix([]byte(line), []byte("notify: "))
	h, r, ok1 := bytes.Cut(rest, []byte{'/'})
	w, n, ok2 := bytes.Cut(r, []byte{'.'})
	if !ok || !ok1 || !ok2 {
		return &FormatError{Text: line}
	}
	*how, *whom = string(h), string(w)
	_, err := fmt.Sscanf(string(n), "%d", id)
	return err
}
