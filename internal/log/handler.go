// Package log writes the log in the line format of criu, which container engines, test drivers and people search:
//
//	(00.012345) Error (collectors/pipe.go:71): pipe 17 of task 4242: ...
//	(00.012345) Warn  (stages/seize.go:30): ...
//	(00.012345)   4242: a line about task 4242
//
// All code logs through log/slog; [Open] makes the [Handler] that turns its records into such lines. The time stamp
// counts seconds from the start of the tool and stands there from level 3 (information) on. The attribute "task" becomes
// the pid in front of the text, other attributes follow it as key=value.
package log

import (
	"context"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Levels of criu's -v option.
const (
	Messages = iota // nothing but what a command prints as its result
	Errors
	Warnings
	Infos
	Debug
)

// TaskKey is the attribute that holds the pid a line is about.
const TaskKey = "task"

// silent is above every level that is used.
const silent = slog.Level(100)

// level converts criu's verbosity.
func level(verbosity int) slog.Level {
	switch {
	case verbosity <= Messages:
		return silent
	case verbosity == Errors:
		return slog.LevelError
	case verbosity == Warnings:
		return slog.LevelWarn
	case verbosity == Infos:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// Handler is an [slog.Handler] that writes criu's lines. Each line is one write; it is safe for concurrent use.
type Handler struct {
	main   io.Writer
	out    func(task int) io.Writer
	level  slog.Level
	stamps bool
	start  time.Time
	attrs  []slog.Attr
	prefix string // of the keys of an open group
	first  *firstError
}

// NewHandler returns a handler that writes lines up to a verbosity to w. Time stamps count from start.
func NewHandler(w io.Writer, verbosity int, start time.Time) *Handler {
	return &Handler{
		main:   w,
		out:    func(int) io.Writer { return w },
		level:  level(verbosity),
		stamps: verbosity >= Infos,
		start:  start,
		first:  new(firstError),
	}
}

// firstError remembers the first error of a run, which RPC clients get.
type firstError struct {
	mu   sync.Mutex
	text string
}

func (f *firstError) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.text == "" {
		f.text = s
	}
}

// FirstError returns the text of the first error that was logged, without position and time; empty if there was none.
func (h *Handler) FirstError() string {
	h.first.mu.Lock()
	defer h.first.mu.Unlock()
	return h.first.text
}

// File is where the lines of l go that are about no single task, for another process to write there too. It is nil if
// that is no file.
func File(l *slog.Logger) *os.File {
	if h, ok := l.Handler().(*Handler); ok {
		f, _ := h.main.(*os.File)
		return f
	}
	return nil
}

// Enabled reports whether lines of a level are written.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.level || l >= slog.LevelError // errors are always noted
}

var lines = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

// Handle writes one line.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		h.first.note(r.Message)
	}
	if r.Level < h.level {
		return nil
	}
	buf := lines.Get().(*[]byte)
	defer func() { lines.Put(buf) }()
	b := (*buf)[:0]
	if h.stamps {
		b = appendStamp(b, r.Time.Sub(h.start))
	}
	task := 0
	find := func(a slog.Attr) bool {
		if a.Key == TaskKey && a.Value.Kind() == slog.KindInt64 {
			task = int(a.Value.Int64())
		}
		return true
	}
	for _, a := range h.attrs {
		find(a)
	}
	r.Attrs(find)
	if task > 0 {
		b = appendTask(b, task)
	}
	switch {
	case r.Level >= slog.LevelError:
		b = appendPlace(b, "Error (", r.PC)
	case r.Level >= slog.LevelWarn:
		b = appendPlace(b, "Warn  (", r.PC)
	}
	b = appendClean(b, r.Message)
	for _, a := range h.attrs {
		b = appendAttr(b, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, h.prefix, a)
		return true
	})
	b = append(b, '\n')
	*buf = b
	_, err := h.out(task).Write(b)
	return err
}

// WithAttrs returns a handler that adds attributes to each line.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = append([]slog.Attr(nil), h.attrs...)
	for _, a := range attrs {
		if a.Key != TaskKey {
			a.Key = h.prefix + a.Key
		}
		next.attrs = append(next.attrs, a)
	}
	return &next
}

// WithGroup returns a handler that puts name in front of the keys that follow.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix = h.prefix + name + "."
	return &next
}

// appendStamp writes "(SS.UUUUUU) ". criu's stamp is always twelve bytes wide, so a long run loses its last digits.
func appendStamp(b []byte, d time.Duration) []byte {
	if d < 0 {
		d = 0
	}
	const width = len("(00.000000")
	from := len(b)
	b = append(b, '(')
	b = appendPadded(b, int(d/time.Second), 2, '0')
	b = append(b, '.')
	b = appendPadded(b, int(d%time.Second/time.Microsecond), 6, '0')
	b = b[:from+width]
	return append(b, ") "...)
}

func appendTask(b []byte, pid int) []byte {
	b = appendPadded(b, pid, 6, ' ')
	return append(b, ": "...)
}

func appendPadded(b []byte, n, width int, pad byte) []byte {
	s := strconv.Itoa(n)
	for i := len(s); i < width; i++ {
		b = append(b, pad)
	}
	return append(b, s...)
}

// appendPlace writes where in the code a line comes from: the last two elements of the file's path.
func appendPlace(b []byte, word string, pc uintptr) []byte {
	b = append(b, word...)
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	file := frame.File
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		if j := strings.LastIndexByte(file[:i], '/'); j >= 0 {
			file = file[j+1:]
		}
	}
	b = append(b, file...)
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(frame.Line), 10)
	return append(b, "): "...)
}

func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) || a.Key == TaskKey && a.Value.Kind() == slog.KindInt64 {
		return b
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, sub := range a.Value.Group() {
			b = appendAttr(b, prefix, sub)
		}
		return b
	}
	b = append(b, ' ')
	b = append(b, prefix...)
	b = append(b, a.Key...)
	b = append(b, '=')
	v := a.Value.String()
	if strings.ContainsAny(v, " \t\n\"=") || v == "" {
		return strconv.AppendQuote(b, v)
	}
	return appendClean(b, v)
}

// appendClean keeps text that comes from images or tasks on its line: control characters are written as escapes.
func appendClean(b []byte, s string) []byte {
	s = strings.TrimRight(s, "\n")
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\t':
			b = append(b, c)
		case c < ' ' || c == 0x7f:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
