package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Servers with a protocol of their own, asked in it or by the client that comes with them.

// dialogue is a conversation in lines.
type dialogue struct {
	io.Writer
	*bufio.Reader
	newline  string
	deadline func(time.Time) error
	close    func()
}

func dial(s *instance) (*dialogue, error) {
	conn, err := net.DialTimeout("tcp", s.address(), patience)
	if err != nil {
		return nil, err
	}
	return &dialogue{conn, bufio.NewReader(conn), "\r\n", conn.SetDeadline, func() { conn.Close() }}, nil
}

// say sends a line.
func (d *dialogue) say(line string) error {
	if err := d.deadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := io.WriteString(d, line+d.newline)
	return err
}

// hear receives a line.
func (d *dialogue) hear() (string, error) {
	line, err := d.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// ask sends a line and receives one.
func (d *dialogue) ask(line string) (string, error) {
	if err := d.say(line); err != nil {
		return "", err
	}
	return d.hear()
}

// expect wants certain lines.
func (d *dialogue) expect(lines ...string) error {
	for _, want := range lines {
		if got, err := d.hear(); err != nil || got != want {
			return errors.Join(err, fmt.Errorf("%q, want %q", got, want))
		}
	}
	return nil
}

// command runs a client that comes with a server and returns what it says.
func command(argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = patience
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %.300s", strings.Join(argv, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

func redisCommand(s *instance) []string {
	return []string{"redis-server", "--port", s.port, "--bind", "127.0.0.1", "--dir", s.Dir, "--appendonly", "yes", "--save", "1 1"}
}

// redisAndClientCommand is a tree with the server and a client of it.
func redisAndClientCommand(s *instance) []string {
	server := strings.Join(redisCommand(s), " ")
	server = strings.Replace(server, "--save 1 1", `--save ""`, 1)
	return []string{"sh", "-c", fmt.Sprintf("%s & until redis-cli -p %s ping; do :; done; redis-cli -p %[2]s -r -1 -i 0.01 incr inside & wait", server, s.port)}
}

// redisClient has a transaction open, and another connection that is subscribed to a channel.
func redisClient(s *instance) (*client, error) {
	d, err := dial(s)
	if err != nil {
		return nil, err
	}
	subscriber, err := dial(s)
	if err != nil {
		return nil, err
	}
	channel := fmt.Sprintf("news%p", d)
	err = errors.Join(subscriber.say("SUBSCRIBE "+channel), subscriber.expect("*3", "$9", "subscribe"))
	for range 3 {
		_, heard := subscriber.hear()
		err = errors.Join(err, heard)
	}
	// Half a megabyte of keys.
	err = errors.Join(err, wantAll(d.ask, `EVAL "for i=1,10000 do redis.call('set','key'..i,i) end" 0`, "$-1"), wantAll(d.ask, "MULTI", "+OK"))
	n := 0
	state := func() (string, error) { return d.ask("LLEN list") }
	check := func() error {
		n++
		err := wantAll(d.ask, "STRLEN key10000", "+QUEUED", "INCR inside", "+QUEUED", "EXEC", "*2")
		err = errors.Join(err, d.expect(":5"))
		if _, heard := d.hear(); heard != nil {
			return heard
		}
		err = errors.Join(err, wantAll(d.ask, "PUBLISH "+channel+" hello", ":1"))
		err = errors.Join(err, subscriber.expect("*3", "$7", "message", "$"+strconv.Itoa(len(channel)), channel, "$5", "hello"))
		if strings.Contains(s.read("stdout"), "Background saving error") {
			err = errors.Join(err, errors.New("a save in the background failed"))
		}
		return errors.Join(err, wantAll(d.ask, "MULTI", "+OK"))
	}
	outside := func(do func() error) error {
		return errors.Join(wantAll(d.ask, "DISCARD", "+OK"), do(), wantAll(d.ask, "MULTI", "+OK"))
	}
	return &client{
		check: check,
		load:  func() error { return outside(func() error { return wantAll(d.ask, "SET load 1", "+OK") }) },
		state: func() (text string, err error) {
			err = outside(func() (err error) {
				text, err = state()
				return err
			})
			return text, err
		},
		change: func() error {
			return outside(func() error {
				_, err := d.ask("RPUSH list x")
				return err
			})
		},
		close: func() {
			d.close()
			subscriber.close()
		},
	}, err
}

func memcachedCommand(s *instance) []string {
	port := s.port
	return []string{"memcached", "-u", "root", "-l", "127.0.0.1", "-p", port, "-U", port}
}

func memcachedClient(s *instance) (*client, error) {
	d, err := dial(s)
	if err != nil {
		return nil, err
	}
	udp, err := net.Dial("udp", s.address())
	if err != nil {
		return nil, err
	}
	get := func(key string) (string, error) {
		if answer, err := d.ask("get " + key); err != nil || answer == "END" {
			return "", err
		}
		value, err := d.hear()
		return value, errors.Join(err, d.expect("END"))
	}
	set := func(key, value string) error {
		return errors.Join(d.say(fmt.Sprintf("set %s 0 0 %d", key, len(value))), wantAll(d.ask, value, "STORED"))
	}
	if v, err := get("greeting"); err == nil && v == "" {
		if err := set("greeting", "hello"); err != nil {
			return nil, err
		}
	}
	check := func() error {
		if err := wantAll(get, "greeting", "hello"); err != nil {
			return err
		}
		var err error
		answer := make([]byte, 1500)
		for try := time.Now(); time.Since(try) < patience; { // a datagram may be lost
			udp.SetDeadline(time.Now().Add(time.Second))
			if _, err = io.WriteString(udp, "\x00\x01\x00\x00\x00\x01\x00\x00get greeting\r\n"); err != nil {
				continue
			}
			n, e := udp.Read(answer)
			if err = e; err == nil && bytes.Contains(answer[:n], []byte("\r\nhello\r\n")) {
				return nil
			}
		}
		return fmt.Errorf("no answer over UDP: %w", err)
	}
	return &client{
		check: check, load: func() error { return wantAll(get, "greeting", "hello") },
		state: func() (string, error) { return get("mark") }, change: func() error { return set("mark", "changed") },
		close: func() {
			d.close()
			udp.Close()
		},
	}, nil
}

// postgresCommand makes a cluster of the server's own user; PostgreSQL refuses to run as root.
func postgresCommand(s *instance) []string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		s.t.Skip("no PostgreSQL on this machine: apt-get install postgresql")
	}
	bin := filepath.Dir(found[len(found)-1])
	for _, dir := range []string{filepath.Dir(s.Dir), s.Dir} {
		if err := os.Chmod(dir, 0o777); err != nil {
			s.t.Fatal(err)
		}
	}
	as := []string{"setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"}
	if _, err := command(append(as, filepath.Join(bin, "initdb"), "--no-sync", "-A", "trust", "-D", s.path("data"))...); err != nil {
		s.t.Fatal(err)
	}
	// Only when it shuts down itself does it remove its shared memory.
	s.t.Cleanup(func() {
		if s.Alive() {
			unix.Kill(s.Pid, syscall.SIGINT)
			s.await("end of the server", func() bool { return !s.Alive() })
		}
	})
	return append(as, filepath.Join(bin, "postgres"), "-D", s.path("data"), "-p", s.port, "-k", s.Dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")
}

// postgresClient has a session with an open transaction, whose row nobody else may see.
func postgresClient(s *instance) (*client, error) {
	for _, pid := range s.Tree() {
		maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		for _, segment := range regexp.MustCompile(`/dev/shm/PostgreSQL\.\d+`).FindAllString(string(maps), -1) {
			s.t.Cleanup(func() { os.Remove(segment) }) // a server that was killed does not
		}
	}
	psql := func(host string) []string {
		return []string{"psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", s.port, "-U", "postgres"}
	}
	once := func(sql string) (string, error) { return command(append(psql(s.Dir), "-c", sql)...) }
	if _, err := once("create table if not exists t (n int); create table if not exists loads (n int)"); err != nil {
		return nil, err
	}
	d, err := talkTo(psql("127.0.0.1")...)
	if err != nil {
		return nil, err
	}
	rows, err := d.ask("select count(*) from t;")
	if err != nil {
		return nil, err
	}
	inside := 0
	return &client{
		check: func() error {
			if inside++; inside == 1 {
				if err := d.say("begin;"); err != nil {
					return err
				}
			}
			before, err := strconv.Atoi(rows)
			return errors.Join(err, d.say("insert into t values (1);"),
				wantAll(d.ask, "select count(*) from t;", strconv.Itoa(before+inside)),
				wantAll(once, "select count(*) from t", rows))
		},
		load:   func() error { return wantAll(d.ask, "insert into loads values (1) returning n;", "1") },
		state:  func() (string, error) { return once("select count(*) from t") },
		change: func() error { return errors.Join(d.say("insert into t values (2);"), wantAll(d.ask, "select 1;", "1")) },
		close:  d.close,
	}, nil
}

// mariadbCommand leaves asynchronous I/O as it is by default: by io_uring.
func mariadbCommand(s *instance) []string {
	if _, err := command("mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+s.path("data"), "--auth-root-authentication-method=normal", "--skip-test-db"); err != nil {
		s.t.Fatal(err)
	}
	return []string{"mariadbd", "--no-defaults", "--user=root", "--datadir=" + s.path("data"), "--port=" + s.port, "--bind-address=127.0.0.1",
		"--socket=" + s.path("socket"), "--pid-file=" + s.path("pid"), "--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--performance-schema=0"}
}

// mariadbClient has a session with an open transaction, whose row nobody else may see.
func mariadbClient(s *instance) (*client, error) {
	mariadb := []string{"mariadb", "--no-defaults", "-uroot", "-N", "-B", "--unbuffered"}
	once := func(sql string) (string, error) {
		return command(append(mariadb, "-S", s.path("socket"), "-e", sql)...)
	}
	if _, err := once("create database if not exists d; create table if not exists d.t (n int) engine=innodb"); err != nil {
		return nil, err
	}
	d, err := talkTo(append(mariadb, "-h127.0.0.1", "-P"+s.port, "-n", "d")...)
	if err != nil {
		return nil, err
	}
	rows, err := once("select count(*) from d.t")
	if err != nil {
		return nil, err
	}
	before, err := strconv.Atoi(rows)
	inside := 0
	return &client{
		check: func() error {
			if inside++; inside == 1 {
				if err := d.say("begin;"); err != nil {
					return err
				}
			}
			return errors.Join(d.say("insert into t values (1);"),
				wantAll(d.ask, "select count(*) from t;", strconv.Itoa(before+inside)),
				wantAll(once, "select count(*) from d.t", rows))
		},
		load:   func() error { return wantAll(d.ask, "select 1;", "1") },
		state:  func() (string, error) { return once("select count(*) from d.t") },
		change: func() error { return errors.Join(d.say("insert into t values (2);"), wantAll(d.ask, "select 1;", "1")) },
		close:  d.close,
	}, err
}

// talkTo starts a client and talks to it over pipes.
func talkTo(argv ...string) (*dialogue, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	giveUp := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	again := func(time.Time) error {
		giveUp.Reset(patience)
		return nil
	}
	return &dialogue{in, bufio.NewReader(out), "\n", again, func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		giveUp.Stop()
	}}, nil
}

// dnsmasqCommand is a server that watches the network's addresses over netlink.
func dnsmasqCommand(s *instance) []string {
	return []string{"dnsmasq", "-k", "-p", s.port, "--listen-address=127.0.0.1", "--bind-interfaces", "-R", "-h", "--address=/cryo.test/192.0.2.1",
		"--user=root", "--pid-file=" + s.path("pid"), "--conf-file=/dev/null"}
}

func dnsmasqClient(s *instance) (*client, error) {
	resolve := func(string) (string, error) {
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", s.address())
		}}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		found, err := resolver.LookupNetIP(ctx, "ip4", "cryo.test.")
		return fmt.Sprint(found), err
	}
	check := func() error { return wantAll(resolve, "over UDP", "[192.0.2.1]") }
	return &client{check: check, close: func() {}}, nil
}

func dbusCommand(s *instance) []string {
	return []string{"dbus-daemon", "--session", "--nofork", "--nopidfile", "--address=unix:path=" + s.path("bus")}
}

func dbusClient(s *instance) (*client, error) {
	check := func() error {
		names, err := command("dbus-send", "--bus=unix:path="+s.path("bus"), "--print-reply", "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.ListNames")
		if err == nil && !strings.Contains(names, `"org.freedesktop.DBus"`) {
			err = fmt.Errorf("names on the bus: %.300q", names)
		}
		return err
	}
	return &client{check: check, close: func() {}}, nil
}

func sshdCommand(s *instance) []string {
	for _, key := range []string{"host", "user"} {
		if _, err := command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.path(key)); err != nil {
			s.t.Fatal(err)
		}
	}
	const empty = "/run/sshd" // sshd insists on this directory; the service manager makes it
	if err := os.Mkdir(empty, 0o755); err == nil {
		s.t.Cleanup(func() { os.Remove(empty) })
	}
	argv := []string{"/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", s.path("host"), "-p", s.port}
	for _, option := range []string{"ListenAddress=127.0.0.1", "AuthorizedKeysFile=" + s.path("user.pub"), "StrictModes=no", "UsePAM=no",
		"PermitRootLogin=yes", "PidFile=none"} {
		argv = append(argv, "-o", option)
	}
	return argv
}

// sshdClient has a session with a shell.
func sshdClient(s *instance) (*client, error) {
	argv := []string{"ssh", "-F", "/dev/null", "-i", s.path("user"), "-p", s.port}
	for _, option := range []string{"StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"} {
		argv = append(argv, "-o", option)
	}
	argv = append(argv, "127.0.0.1")
	d, err := talkTo(append(argv, "n=0; while read what; do n=$((n+1)); echo $what $n; done")...)
	if err != nil {
		return nil, err
	}
	n := 0
	say := func() error {
		n++
		return wantAll(d.ask, "line", fmt.Sprint("line ", n))
	}
	check := func() error {
		return errors.Join(say(), wantAll(func(what string) (string, error) { return command(append(argv, what)...) }, "echo again", "again"))
	}
	return &client{check: check, load: say, close: d.close}, nil
}
