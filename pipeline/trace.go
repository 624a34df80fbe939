package pipeline

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// How often live displays are drawn anew.
const redraw = 100 * time.Millisecond

// ticker calls draw at regular times until it is stopped.
type ticker struct{ stop, stopped chan struct{} }

func tick(every time.Duration, draw func()) *ticker {
	t := &ticker{make(chan struct{}), make(chan struct{})}
	go func() {
		defer close(t.stopped)
		clock := time.NewTicker(every)
		defer clock.Stop()
		for {
			select {
			case <-clock.C:
				draw()
			case <-t.stop:
				return
			}
		}
	}()
	return t
}

// end returns when no call of draw is under way nor will be.
func (t *ticker) end() {
	close(t.stop)
	<-t.stopped
}

// NewTrace returns an observer that shows a run on w: as a table that is drawn over and over if live is set, which needs
// a terminal, else as a line for each stage that begins or ends and for each undo step.
func NewTrace(w io.Writer, live bool) Observer {
	if live {
		return &table{w: w}
	}
	return &lines{w: w}
}

// table is the live trace.
type table struct {
	w      io.Writer
	view   *View
	ticker *ticker
	height int // lines of the table on the screen
	mu     sync.Mutex
	notes  []string // lines to be left above the table
}

func (t *table) Start(v *View) {
	t.view = v
	t.ticker = tick(redraw, t.draw)
}

func (t *table) Event(e Event) {
	if e.Kind == UndoEnd {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.notes = append(t.notes, undoLine(e))
	}
}

func (t *table) End(err error) {
	t.ticker.end()
	t.draw()
}

// draw goes back to the first line of the table and writes it again, with line wrap off so that its height is known.
func (t *table) draw() {
	t.mu.Lock()
	notes := t.notes
	t.notes = nil
	t.mu.Unlock()
	rows := tableRows(t.view)
	var b strings.Builder
	if t.height > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.height)
	}
	b.WriteString("\r\x1b[J\x1b[?7l")
	for _, l := range append(notes, rows...) {
		b.WriteString(l + "\n")
	}
	b.WriteString("\x1b[?7h")
	t.height = len(rows)
	io.WriteString(t.w, b.String())
}

func tableRows(v *View) []string {
	rows := []string{
		fmt.Sprintf("%s %.3f s", v.Graph(), v.Elapsed().Seconds()),
		fmt.Sprintf("  %-18s %-8s %7s %7s %7s %9s %9s %9s %5s", "stage", "state", "in", "out", "queue", "bytes", "busy", "blocked", "done"),
	}
	for _, s := range v.Stages() {
		rows = append(rows, fmt.Sprintf("  %-18s %-8s %7d %7d %7s %9s %9s %9s %5s", s.Name, s.State, s.In, s.Out,
			fmt.Sprintf("%d/%d", s.Queue, s.QueueCap), byteText(s.Bytes), durationText(s.Busy), durationText(s.Blocked), percent(s)))
	}
	return rows
}

// lines is the plain trace.
type lines struct {
	w    io.Writer
	view *View
	mu   sync.Mutex
	seen map[string]bool // stages that have begun with their first item
}

func (l *lines) Start(v *View) { l.view, l.seen = v, map[string]bool{} }

func (l *lines) Event(e Event) {
	switch e.Kind {
	case ItemStart:
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.seen[e.Stage] {
			l.seen[e.Stage] = true
			l.print(e.At, "%s: begins", e.Stage)
		}
	case StageEnd:
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, s := range l.view.Stages() {
			if s.Name == e.Stage {
				l.print(e.At, "%s: %s, %d in, %d out, %s bytes, busy %s, blocked %s", s.Name, s.State, s.In, s.Out,
					byteText(s.Bytes), durationText(s.Busy), durationText(s.Blocked))
			}
		}
	case UndoEnd:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.print(e.At, "%s", undoLine(e))
	}
}

func (l *lines) End(err error) {
	if err == nil {
		l.print(l.view.Elapsed(), "done")
	} else {
		l.print(l.view.Elapsed(), "failed")
	}
}

func (l *lines) print(at time.Duration, format string, args ...any) {
	fmt.Fprintf(l.w, "(%09.6f) %s: %s\n", at.Seconds(), l.view.Graph(), fmt.Sprintf(format, args...))
}

func undoLine(e Event) string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return "undo " + e.Item
}

// byteText prints a number of bytes with a binary unit.
func byteText(n int64) string {
	if n < 1024 {
		return fmt.Sprint(n)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < 5 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f%ci", v, "KMGTPE"[unit])
}

// durationText prints a duration with three or four digits.
func durationText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func percent(s StageView) string {
	if s.Total <= 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", int(float64(s.Done)/float64(s.Total)*100))
}
