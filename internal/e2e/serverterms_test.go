package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Programs that are no servers of a network: they are asked over a FIFO, at a terminal or by a message.

// dictation is a program that reads a FIFO and writes a file.
type dictation struct {
	s  *instance
	in *os.File
	n  int
}

// dictate makes the FIFO and the command line of a program that reads it and writes the file "out". It holds the FIFO
// open for writing as well, so that it never ends.
func dictate(s *instance, program string) []string {
	s.t.Helper()
	if err := unix.Mkfifo(s.path("in"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return []string{"sh", "-c", "exec " + program + " <>in >out"}
}

func dictateTo(s *instance) (*dictation, error) {
	in, err := os.OpenFile(s.path("in"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	return &dictation{s: s, in: in}, err
}

func (d *dictation) close() { d.in.Close() }

// ask writes a line and waits for what the program writes between a mark of its own and the end of that line. The text
// makes the program print the mark, which stands for %s in it.
func (d *dictation) ask(text string) (string, error) {
	d.n++
	mark := fmt.Sprintf("%p-%d", d, d.n)
	if _, err := fmt.Fprintf(d.in, text+"\n", mark); err != nil {
		return "", err
	}
	return d.s.awaitText(func() string { return d.s.read("out") }, mark+"=")
}

// awaitText waits for a mark to appear in a text, and returns what follows it on its line.
func (s *instance) awaitText(text func() string, mark string) (string, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, after, found := strings.Cut(text(), mark); found {
			if line, _, whole := strings.Cut(after+"\n", "\n"); whole {
				return strings.TrimSpace(line), nil
			}
		}
		if !s.Alive() {
			return "", errors.New("it has ended")
		}
	}
	return "", fmt.Errorf("no %q in %.300q", mark, text())
}

func sqliteCommand(journal string) func(*instance) []string {
	return func(s *instance) []string {
		if _, err := command("sqlite3", s.path("db"), "pragma journal_mode="+journal+"; create table t (n)"); err != nil {
			s.t.Fatal(err)
		}
		return dictate(s, "sqlite3 -batch db")
	}
}

// sqliteClient dictates a transaction, which locks the database.
func sqliteClient(s *instance) (*client, error) {
	d, err := dictateTo(s)
	if err != nil {
		return nil, err
	}
	const count = "select '%s='||count(*) from t;"
	begun, rows := false, 0
	return &client{
		check: func() error {
			begin := ""
			if !begun {
				begin, rows = "begin immediate; ", 0
			}
			begun = true
			rows++
			if err := wantAll(d.ask, begin+"insert into t values (1); "+count, fmt.Sprint(rows)); err != nil {
				return err
			}
			_, err := command("sqlite3", s.path("db"), "insert into t values (2)")
			if err == nil || !strings.Contains(err.Error(), "locked") {
				return fmt.Errorf("another one writes while the transaction is open: %v", err)
			}
			return wantAll(func(sql string) (string, error) { return command("sqlite3", s.path("db"), sql) }, "select count(*) from t", "0")
		},
		close: func() {
			if begun {
				d.ask("rollback; " + count)
			}
			d.close()
		},
	}, nil
}

func scriptCommand(s *instance) []string {
	return dictate(s, "script -q -f -c 'exec bash --norc --noprofile -i' typescript")
}

// scriptClient types at the shell, which runs jobs in the terminal that script made.
func scriptClient(s *instance) (*client, error) {
	d, err := dictateTo(s)
	if err != nil {
		return nil, err
	}
	return &client{
		check: func() error {
			if err := wantAll(d.ask, `sleep 1000 & jobs %%%% | grep -c Running >/dev/null && echo "%s"=$((40+2)); kill %%%%; wait`, "42"); err != nil {
				return err
			}
			return wantAll(d.ask, `tty -s && echo "%s"=terminal`, "terminal")
		},
		state:  func() (string, error) { return d.ask(`echo "%s"=$variable`) },
		change: func() error { return wantAll(d.ask, `variable=changed; echo "%s"=$variable`, "changed") },
		close:  d.close,
	}, nil
}

func tmuxCommand(s *instance) []string {
	return []string{"tmux", "-D", "-S", s.path("socket"), "-f", "/dev/null"}
}

// tmuxClient types at a shell and at an editor, each in a window of a session that nobody is attached to.
func tmuxClient(s *instance) (*client, error) {
	tmux := func(argv ...string) (string, error) {
		return command(append([]string{"tmux", "-N", "-S", s.path("socket")}, argv...)...)
	}
	if _, err := tmux("has-session", "-t", "main"); err != nil {
		if _, err := tmux("new-session", "-d", "-s", "main", "-x", "80", "-y", "24", "exec bash --norc --noprofile -i"); err != nil {
			return nil, err
		}
		if _, err := tmux("new-window", "-t", "main", "-c", s.path(""), "exec vi"); err != nil {
			return nil, err
		}
	}
	screen := func(window string) func() string {
		return func() string {
			text, _ := tmux("capture-pane", "-p", "-t", "main:"+window)
			return text
		}
	}
	n := 0
	ask := func(text string) (string, error) {
		n++
		mark := fmt.Sprintf("%d.%d", time.Now().UnixNano()%1e9, n)
		if _, err := tmux("send-keys", "-t", "main:0", "clear; echo '"+mark+"'="+text, "Enter"); err != nil {
			return "", err
		}
		return s.awaitText(screen("0"), mark+"=")
	}
	return &client{
		check: func() error {
			if err := wantAll(ask, "$((40+2))", "42"); err != nil {
				return err
			}
			n++
			mark := fmt.Sprintf("text%d.%d", time.Now().UnixNano()%1e9, n)
			if _, err := tmux("send-keys", "-t", "main:1", "Escape", "O", mark, "Escape"); err != nil {
				return err
			}
			_, err := s.awaitText(screen("1"), mark)
			return err
		},
		state: func() (string, error) { return ask("$variable") },
		change: func() error {
			_, err := tmux("send-keys", "-t", "main:0", "variable=changed", "Enter")
			return err
		},
		close: func() {},
	}, nil
}

func rsyslogCommand(s *instance) []string {
	return []string{"rsyslogd", "-n", "-i", s.path("pid"), "-f", s.write("rsyslog.conf", strings.ReplaceAll(`
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="DIR/log")
*.* action(type="omfile" file="DIR/messages")
`, "DIR", s.Dir))}
}

// rsyslogClient sends messages as every program sends them to /dev/log.
func rsyslogClient(s *instance) (*client, error) {
	if _, err := os.Stat(s.path("log")); err != nil {
		return nil, err
	}
	log := func() error {
		mark := fmt.Sprint("message", time.Now().UnixNano())
		if _, err := command("logger", "-u", s.path("log"), mark); err != nil {
			return err
		}
		_, err := s.awaitText(func() string { return s.read("messages") }, mark)
		return err
	}
	return &client{check: log, close: func() {}}, nil
}
