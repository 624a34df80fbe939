package log

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config says where the log goes.
type Config struct {
	// Dir is the work directory that a relative File is in.
	Dir string
	// File is the name of the log: empty is standard error, "-" standard output.
	File string
	// PerTask writes lines about a task to File.PID instead.
	PerTask bool
	// Verbosity is criu's level.
	Verbosity int
	// Start is what time stamps count from.
	Start time.Time
	// Version is what the log's first line tells.
	Version string
	// Continue goes on with a log that the process before this one began.
	Continue bool
}

// Log is an open log.
type Log struct {
	*Handler
	main  io.Writer
	dir   string
	file  string
	empty int // O_TRUNC, unless the log is continued
	mu    sync.Mutex
	tasks map[int]*os.File
	files []*os.File
}

// maxTaskLogs bounds the open log files of single tasks; further tasks log to the common file.
const maxTaskLogs = 512

// Open opens the log and makes it the default of log/slog. A log file is emptied, and only its owner may read it. A
// relative name is not followed if it is a link: the work directory may be anybody's.
func Open(c Config) (*Log, error) {
	l := &Log{main: os.Stderr, tasks: make(map[int]*os.File), empty: unix.O_TRUNC}
	if c.Continue {
		l.empty = 0
	}
	switch c.File {
	case "":
	case "-":
		l.main = os.Stdout
	default:
		l.dir, l.file = c.Dir, c.File
		f, err := l.create(c.File)
		if err != nil {
			return nil, err
		}
		l.main = f
	}
	l.Handler = NewHandler(l.main, c.Verbosity, c.Start)
	if c.PerTask && l.file != "" {
		l.Handler.out = l.forTask
	}
	slog.SetDefault(slog.New(l.Handler))
	if !c.Continue {
		l.head(c.Version)
	}
	return l, nil
}

// Close closes the log's files. The default of log/slog stays as it is.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.Close()
	}
	l.files, l.tasks = nil, nil
}

// ToFile reports whether the log goes to a file and not to the terminal of the user.
func (l *Log) ToFile() bool { return l.file != "" }

// Path is the name of the log for messages, empty if it has none.
func (l *Log) Path() string {
	if l.file == "" || filepath.IsAbs(l.file) {
		return l.file
	}
	return filepath.Join(l.dir, l.file)
}

func (l *Log) create(name string) (*os.File, error) {
	flags := unix.O_CREAT | l.empty | unix.O_WRONLY | unix.O_APPEND | unix.O_CLOEXEC
	path := name
	if !filepath.IsAbs(name) {
		flags |= unix.O_NOFOLLOW
		path = filepath.Join(l.dir, name)
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	l.files = append(l.files, f)
	return f, nil
}

// forTask finds the file for lines about a task.
func (l *Log) forTask(task int) io.Writer {
	if task <= 0 {
		return l.main
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.tasks[task]; f != nil {
		return f
	}
	if len(l.tasks) >= maxTaskLogs || l.tasks == nil {
		return l.main
	}
	f, err := l.create(l.file + "." + strconv.Itoa(task))
	if err != nil {
		return l.main
	}
	l.tasks[task] = f
	return f
}

// head writes the two lines that drivers expect at the top of a log.
func (l *Log) head(version string) {
	if l.Handler.level > slog.LevelInfo {
		return
	}
	slog.Info("Version: " + version)
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return
	}
	var words []string
	for _, field := range [][]byte{u.Nodename[:], u.Sysname[:], u.Release[:], u.Version[:], u.Machine[:]} {
		word, _, _ := bytes.Cut(field, []byte{0})
		words = append(words, string(word))
	}
	slog.Info("Running on " + strings.Join(words, " "))
}
