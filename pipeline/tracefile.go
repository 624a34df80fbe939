package pipeline

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// TraceFile is an observer that writes a run in the JSON array format of Chrome's trace viewer, which Perfetto reads as
// well: a track a worker with a slice an item, and counters of queues and bytes. It is written as the run goes on; a file
// without an end, left by a process that was killed, can still be opened.
type TraceFile struct {
	mu     sync.Mutex
	w      *bufio.Writer
	err    error
	view   *View
	tracks map[track]int
}

type track struct {
	stage  string
	worker int
}

// traceEvent is one element of the array. Times are in microseconds.
type traceEvent struct {
	Name  string         `json:"name"`
	Phase string         `json:"ph"`
	At    float64        `json:"ts"`
	Took  float64        `json:"dur,omitempty"`
	Pid   int            `json:"pid"`
	Tid   int            `json:"tid"`
	Scope string         `json:"s,omitempty"`
	Args  map[string]any `json:"args,omitempty"`
}

// NewTraceFile returns a TraceFile that writes to w.
func NewTraceFile(w io.Writer) *TraceFile {
	return &TraceFile{w: bufio.NewWriter(w), tracks: map[track]int{}}
}

// Err returns the first error of writing.
func (t *TraceFile) Err() error { return t.err }

// Start implements Observer.
func (t *TraceFile) Start(v *View) {
	t.view = v
	_, t.err = t.w.WriteString("[\n")
	t.write(traceEvent{Name: "process_name", Phase: "M", Args: map[string]any{"name": v.Graph()}})
}

// Event implements Observer.
func (t *TraceFile) Event(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	te := traceEvent{Name: e.Item, At: micro(e.At), Tid: t.track(track{e.Stage, e.Worker})}
	if te.Name == "" {
		te.Name = e.Stage
	}
	if e.Err != nil {
		te.Args = map[string]any{"error": e.Err.Error()}
	}
	switch e.Kind {
	case ItemStart:
		if e.QueueCap > 0 {
			t.write(traceEvent{Name: "queue " + e.Stage, Phase: "C", At: te.At, Args: map[string]any{"items": e.Queue}})
		}
	case ItemEnd:
		te.Phase, te.At, te.Took = "X", micro(e.At-e.Took), micro(e.Took)
		t.write(te)
		if e.Bytes > 0 {
			t.write(traceEvent{Name: "bytes " + e.Stage, Phase: "C", At: micro(e.At), Args: map[string]any{"bytes": e.Bytes}})
		}
	case StageEnd:
		te.Name, te.Phase, te.Scope = e.Stage+" ends", "i", "t"
		t.write(te)
	case UndoEnd:
		te.Name, te.Phase, te.At, te.Took = "undo "+e.Item, "X", micro(e.At-e.Took), micro(e.Took)
		t.write(te)
	}
}

// End implements Observer. It writes the end of the array.
func (t *TraceFile) End(error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.write(traceEvent{Name: "end", Phase: "i", At: micro(t.view.Elapsed()), Scope: "g"})
	if t.err == nil {
		_, t.err = t.w.WriteString("\n]\n")
	}
	if t.err == nil {
		t.err = t.w.Flush()
	}
}

// track returns the number of a track, and names it when it is new.
func (t *TraceFile) track(k track) int {
	id, ok := t.tracks[k]
	if !ok {
		id = len(t.tracks) + 1
		t.tracks[k] = id
		t.write(traceEvent{Name: "thread_name", Phase: "M", Tid: id, Args: map[string]any{"name": k.stage}})
		t.write(traceEvent{Name: "thread_sort_index", Phase: "M", Tid: id, Args: map[string]any{"sort_index": id}})
	}
	return id
}

// write adds an element. The first one is that of Start, so that all others follow a comma.
func (t *TraceFile) write(e traceEvent) {
	if t.err != nil {
		return
	}
	e.Pid = 1
	text, err := json.Marshal(e)
	if err == nil && e.Name != "process_name" {
		_, err = t.w.WriteString(",\n")
	}
	if err == nil {
		_, err = t.w.Write(text)
	}
	t.err = err
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
