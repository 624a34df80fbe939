package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// service is an unmodified server of the distribution (or a small one on an unmodified runtime), with clients outside of its
// tree that know how to ask it.
type service struct {
	name    string
	needs   []string // programs
	options []string // of dump and restore, beside those every server gets
	// command prepares the instance's directory and returns the command line.
	command func(s *instance) []string
	// connect makes a client. The first ones fail, as the server takes its time to start.
	connect func(s *instance) (*client, error)
}

// client is one user of a server, who keeps the connection until close.
type client struct {
	check  func() error           // asks everything, over that same connection
	load   func() error           // a single request, made again and again while the server is dumped; nil for none
	state  func() (string, error) // what a roll-back takes back; nil for nothing
	change func() error           // changes that
	close  func()
}

// instance is a server that runs.
type instance struct {
	*Target
	port string
}

func (s *instance) address() string { return net.JoinHostPort("127.0.0.1", s.port) }

func (s *instance) path(name string) string { return filepath.Join(s.Dir, name) }

// write makes a file in the directory of the instance.
func (s *instance) write(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// complaints is the end of what the server wrote to its standard error.
func (s *instance) complaints() string {
	text := s.read("stderr")
	return text[max(0, len(text)-1000):]
}

var services = []service{
	{"redis", []string{"redis-server"}, nil, redisCommand, redisClient},
	{"redis, a client inside", []string{"redis-server", "redis-cli"}, nil, redisAndClientCommand, redisClient},
	{"memcached", []string{"memcached"}, nil, memcachedCommand, memcachedClient},
	{"nginx", []string{"nginx"}, nil, nginxCommand, nginxClient},
	{"postgres", []string{"psql", "setpriv"}, nil, postgresCommand, postgresClient},
	{"mariadb", []string{"mariadbd", "mariadb-install-db", "mariadb"}, []string{"--file-locks"}, mariadbCommand, mariadbClient},
	{"haproxy", []string{"haproxy"}, nil, haproxyCommand, haproxyClient},
	{"node", []string{"node"}, nil, programCommand("node", "server.js"), webClient("/thread", "/process", "/pipe", "/file")},
	{"node, io_uring", []string{"node"}, nil, ringNodeCommand, webClient("/thread", "/process", "/pipe", "/file")},
	{"java", []string{"java"}, nil, programCommand("java", "-Xmx400m", "Server.java"), webClient("/thread", "/pipe", "/heap", "/collect")},
	{"go", []string{"go"}, nil, goCommand, webClient("/thread", "/pipe")},
	{"python", []string{"python3"}, nil, programCommand("/usr/bin/python3", "server.py"), webClient("/thread", "/process", "/memory", "/pipe")},
	{"sqlite, journal", []string{"sqlite3"}, []string{"--file-locks"}, sqliteCommand("delete"), sqliteClient},
	{"sqlite, write-ahead log", []string{"sqlite3"}, []string{"--file-locks"}, sqliteCommand("wal"), sqliteClient},
	{"shell in a terminal", []string{"script"}, nil, scriptCommand, scriptClient},
	{"tmux", []string{"tmux", "vi"}, nil, tmuxCommand, tmuxClient},
	{"sshd", []string{"/usr/sbin/sshd", "ssh", "ssh-keygen"}, nil, sshdCommand, sshdClient},
	{"dnsmasq", []string{"dnsmasq"}, nil, dnsmasqCommand, dnsmasqClient},
	{"dbus-daemon", []string{"dbus-daemon", "dbus-send"}, nil, dbusCommand, dbusClient},
	{"rsyslogd", []string{"rsyslogd", "logger"}, nil, rsyslogCommand, rsyslogClient},
}

// TestServers dumps and restores every server twice in a row while clients keep it busy, and rolls it back to a snapshot
// that left it running.
func TestServers(t *testing.T) {
	RequireRoot(t)
	for _, service := range services {
		t.Run(service.name, func(t *testing.T) {
			for _, program := range service.needs {
				require(t, program)
			}
			s := service.start(t)
			service.underLoad(s)
			service.rolledBack(s)
		})
	}
}

// start starts a server and waits until it answers.
func (service service) start(t *testing.T) *instance {
	t.Helper()
	dir := t.TempDir()
	s := &instance{Target: &Target{t: t, Dir: dir}, port: freePort(t)}
	command := service.command(s)
	s.Target = Start(t, dir, append([]string{require(t, command[0])}, command[1:]...)...)
	s.Options = append([]string{"--tcp-established"}, service.options...)
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var c *client
		if c, err = service.connect(s); err == nil {
			err = c.check()
			c.close()
		}
		if err == nil {
			return s
		}
		if !s.Alive() {
			break
		}
	}
	t.Fatalf("it does not answer: %v; stderr: %s", err, s.complaints())
	return nil
}

// client connects, and does not come back without success.
func (service service) client(s *instance) *client {
	s.t.Helper()
	c, err := service.connect(s)
	if err != nil {
		s.t.Fatalf("connect: %v", err)
	}
	return c
}

func (service service) underLoad(s *instance) {
	s.t.Helper()
	c := service.client(s)
	if err := c.check(); err != nil {
		s.t.Fatalf("before the first dump: %v; stderr: %s", err, s.complaints())
	}
	load := startLoad(service.client(s))
	defer load.stop()
	load.goesOn(s)
	for _, when := range []string{"first", "second"} {
		images := s.t.TempDir()
		s.Dump(tools.Criu, images)
		s.Restore(tools.Criu, images)
		if err := c.check(); err != nil {
			s.t.Fatalf("after the %s restore: %v; stderr: %s", when, err, s.complaints())
		}
		load.goesOn(s)
	}
	c.close()
}

func (service service) rolledBack(s *instance) {
	s.t.Helper()
	state := func(check bool) (text string) {
		s.t.Helper()
		c := service.client(s)
		defer c.close()
		var err error
		if check {
			err = c.check()
		}
		if c.state != nil && err == nil {
			text, err = c.state()
		}
		if err != nil {
			s.t.Fatalf("rolling back: %v; stderr: %s", err, s.complaints())
		}
		return text
	}
	want, images := state(true), s.t.TempDir()
	keep, rollBack := s.keepFiles()
	s.Dump(tools.Criu, images, "--leave-running", "--action-script", keep)
	c := service.client(s)
	if c.change != nil {
		if err := c.change(); err != nil {
			s.t.Fatalf("after a dump that left it running: %v", err)
		}
	}
	c.close()
	if got := state(true); got == want && c.change != nil {
		s.t.Fatalf("nothing has changed: %s", got)
	}
	s.Kill()
	rollBack()
	s.Restore(tools.Criu, images)
	if got := state(false); got != want {
		s.t.Fatalf("rolled back to %q, not %q", got, want)
	}
	state(true)
}

// load is a client that gives a server no rest.
type load struct {
	client *client
	count  atomic.Int64
	failed atomic.Pointer[error]
	quit   chan struct{}
	done   chan struct{}
}

func startLoad(c *client) *load {
	l := &load{client: c, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer c.close()
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for c.load != nil {
			select {
			case <-l.quit:
				return
			case <-pace.C:
			}
			if err := c.load(); err != nil {
				l.failed.Store(&err)
				return
			}
			l.count.Add(1)
		}
	}()
	return l
}

// goesOn wants that the client has noticed nothing.
func (l *load) goesOn(s *instance) {
	s.t.Helper()
	if l.client.load == nil {
		return
	}
	before := l.count.Load()
	s.await("progress of the client that is busy", func() bool {
		if err := l.failed.Load(); err != nil {
			s.t.Fatalf("the client that is busy, after %d requests: %v; stderr: %s", l.count.Load(), *err, s.complaints())
		}
		return l.count.Load() > before+1
	})
}

func (l *load) stop() {
	close(l.quit)
	<-l.done
}

// wantAll is an error unless every question has its answer.
func wantAll(ask func(string) (string, error), pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		got, err := ask(pairs[i])
		if err != nil {
			return fmt.Errorf("%s: %w", pairs[i], err)
		}
		if got != pairs[i+1] {
			return fmt.Errorf("%s: %.200q, want %q", pairs[i], got, pairs[i+1])
		}
	}
	return nil
}
