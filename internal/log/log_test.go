package log

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	for _, tc := range []struct {
		verbosity int
		log       func(*slog.Logger)
		want      string
	}{
		{4, func(l *slog.Logger) { l.Error("bad thing") }, `^\(00\.\d{6}\) Error \(log/log_test\.go:\d+\): bad thing\n$`},
		{4, func(l *slog.Logger) { l.Warn("odd") }, `^\(00\.\d{6}\) Warn  \(log/log_test\.go:\d+\): odd\n$`},
		{4, func(l *slog.Logger) { l.Info("fine") }, `^\(00\.\d{6}\) fine\n$`},
		{4, func(l *slog.Logger) { l.Debug("x", "n", 1, "s", "a b") }, `^\(00\.\d{6}\) x n=1 s="a b"\n$`},
		{4, func(l *slog.Logger) { l.Info("x", "task", 42) }, `^\(00\.\d{6}\)     42: x\n$`},
		{4, func(l *slog.Logger) { l.With("task", 42).Warn("x") }, `^\(00\.\d{6}\)     42: Warn  \(log/log_test\.go:\d+\): x\n$`},
		{4, func(l *slog.Logger) { l.WithGroup("g").With("a", 1).Info("x", "b", 2) }, ` x g\.a=1 g\.b=2\n$`},
		{4, func(l *slog.Logger) { l.Info("a\n(00.0) Error (x:1): forged\x1b[2J") }, ` a\\n\(00.0\) Error \(x:1\): forged\\x1b\[2J\n$`},
		{3, func(l *slog.Logger) { l.Debug("x") }, `^$`},
		{2, func(l *slog.Logger) { l.Info("x") }, `^$`},
		{2, func(l *slog.Logger) { l.Warn("x") }, `^Warn  \(`},
		{1, func(l *slog.Logger) { l.Warn("x") }, `^$`},
		{1, func(l *slog.Logger) { l.Error("x") }, `^Error \(`},
		{0, func(l *slog.Logger) { l.Error("x") }, `^$`},
	} {
		var out bytes.Buffer
		tc.log(slog.New(NewHandler(&out, tc.verbosity, time.Now())))
		if !regexp.MustCompile(tc.want).MatchString(out.String()) {
			t.Errorf("level %d: got %q, want %s", tc.verbosity, out.String(), tc.want)
		}
	}
}

func TestStamp(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                                     "(00.000000) ",
		12*time.Second + 34*time.Microsecond:  "(12.000034) ",
		123*time.Second + 456*time.Nanosecond: "(123.00000) ",
		-time.Second:                          "(00.000000) ",
	} {
		if got := string(appendStamp(nil, d)); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

func TestFirstErrorIsKeptAtEveryLevel(t *testing.T) {
	h := NewHandler(&bytes.Buffer{}, 0, time.Now())
	l := slog.New(h)
	l.Warn("w")
	l.With("a", 1).Error("first")
	l.Error("second")
	if got := h.FirstError(); got != "first" {
		t.Errorf("got %q", got)
	}
}

func TestOpen(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir, File: "dump.log", PerTask: true, Verbosity: 4, Start: time.Now(), Version: "4.2 (gitid 0)"})
	if err != nil {
		t.Fatal(err)
	}
	slog.Info("common")
	slog.Info("own", "task", 7)
	l.Close()
	text := read(t, filepath.Join(dir, "dump.log"))
	for _, want := range []string{"Version: 4.2 (gitid 0)\n", "Running on ", ") common\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	if got := read(t, filepath.Join(dir, "dump.log.7")); !strings.Contains(got, " own\n") || strings.Contains(text, "own") {
		t.Errorf("the task's log has %q", got)
	}
	info, err := os.Stat(filepath.Join(dir, "dump.log"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOpenDoesNotFollowALink(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "dump.log")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, File: "dump.log"}); err == nil {
		t.Error("a planted link was followed")
	}
	if got := read(t, victim); got != "precious" {
		t.Errorf("the file behind the link has %q now", got)
	}
}

func BenchmarkDisabled(b *testing.B) {
	l := slog.New(NewHandler(&bytes.Buffer{}, 2, time.Now()))
	for b.Loop() {
		l.Debug("x", "a", 1)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
