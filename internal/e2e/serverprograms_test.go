package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Servers that speak HTTP: those of testdata/programs, nginx and haproxy.

// programCommand runs a program of testdata/programs on an interpreter, which gets the port as its last argument.
func programCommand(argv ...string) func(*instance) []string {
	return func(s *instance) []string {
		s.t.Helper()
		last := len(argv) - 1
		program, err := filepath.Abs(filepath.Join("..", "..", "testdata", "programs", argv[last]))
		if err != nil {
			s.t.Fatal(err)
		}
		return append(append([]string{}, argv[:last]...), program, s.port)
	}
}

// ringNodeCommand lets node do what it does with files by io_uring, which it has to be asked for.
func ringNodeCommand(s *instance) []string {
	return append([]string{"env", "UV_USE_IO_URING=1"}, programCommand("node", "server.js")(s)...)
}

func goCommand(s *instance) []string {
	bin := s.path("webserver")
	build := exec.Command("go", "build", "-o", bin, "../../testdata/programs/webserver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("build: %v\n%s", err, out)
	}
	return []string{bin, s.port}
}

// web is one connection that is kept alive. A request that would need a new one fails.
type web struct {
	base string
	http.Client
	used bool
}

func newWeb(s *instance) *web {
	dial := &net.Dialer{Timeout: patience}
	return &web{base: "http://" + s.address(), Client: http.Client{
		Timeout:   patience,
		Transport: &http.Transport{MaxConnsPerHost: 1, DialContext: dial.DialContext, DisableCompression: true},
	}}
}

// open asks for a page; the caller closes its body.
func (w *web) open(path string) (*http.Response, error) {
	request, err := http.NewRequest(http.MethodGet, w.base+path, nil)
	if err != nil {
		return nil, err
	}
	kept := false
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { kept = i.Reused }}
	response, err := w.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		return nil, err
	}
	if w.used && !kept {
		response.Body.Close()
		return nil, errors.New("the connection was lost")
	}
	w.used = true
	return response, nil
}

func (w *web) ask(path string) (string, error) {
	response, err := w.open(path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(b), err
}

func (w *web) hello() error { return wantAll(w.ask, "/", "hello") }

// ticks wants the timers of the server to run.
func (w *web) ticks() error {
	first, err := w.ask("/ticks")
	for end := time.Now().Add(patience); err == nil && time.Now().Before(end); {
		var now string
		if now, err = w.ask("/ticks"); now != first {
			return err
		}
	}
	return errors.Join(err, fmt.Errorf("the timers stand still at %s", first))
}

// webClient asks a program of testdata/programs; the answer to each of the paths is 42.
func webClient(paths ...string) func(*instance) (*client, error) {
	return func(s *instance) (*client, error) {
		w := newWeb(s)
		count := func() (string, error) { return w.ask("/count") }
		add := func() error {
			before, err := w.ask("/count")
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(before)
			if err != nil {
				return err
			}
			return wantAll(w.ask, "/add", strconv.Itoa(n+1))
		}
		check := func() error {
			for _, path := range paths {
				if err := wantAll(w.ask, path, "42"); err != nil {
					return err
				}
			}
			return errors.Join(w.hello(), w.ticks())
		}
		return &client{check: check, load: w.hello, state: count, change: add, close: w.CloseIdleConnections}, nil
	}
}

// downloadSize is more than the buffers of a connection hold.
const downloadSize = 24 << 20

func nginxCommand(s *instance) []string {
	big := make([]byte, downloadSize)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	s.write("big", string(big))
	s.write("index.html", "hello")
	return []string{"nginx", "-e", s.path("errors"), "-c", s.write("nginx.conf", strings.NewReplacer("DIR", s.Dir, "ADDRESS", s.address()).Replace(`
daemon off;
user root;
worker_processes 2;
pid DIR/pid;
error_log DIR/errors;
events {}
http {
	access_log DIR/access;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	keepalive_timeout 600s;
	sendfile on;
	server {
		listen ADDRESS;
		root DIR;
	}
}
`))}
}

// nginxClient keeps a connection alive, and has a large download in flight on another.
func nginxClient(s *instance) (*client, error) {
	w, slow := newWeb(s), newWeb(s)
	var download io.ReadCloser
	sum, got := sha256.New(), int64(0)
	more := func(n int64) error {
		if download == nil {
			response, err := slow.open("/big")
			if err != nil {
				return err
			}
			sum.Reset()
			download, got = response.Body, 0
		}
		n, err := io.CopyN(sum, download, n)
		got += n
		return err
	}
	check := func() error {
		if err := more(downloadSize / 3); err != nil {
			return fmt.Errorf("download, after %d bytes: %w", got, err)
		}
		if got < downloadSize {
			return w.hello()
		}
		download.Close()
		download = nil
		whole, err := os.ReadFile(s.path("big"))
		if want := sha256.Sum256(whole); err == nil && string(sum.Sum(nil)) != string(want[:]) {
			err = errors.New("the download is not the file")
		}
		return errors.Join(err, w.hello())
	}
	stop := func() {
		if download != nil {
			download.Close()
		}
		w.CloseIdleConnections()
		slow.CloseIdleConnections()
	}
	return &client{check: check, load: w.hello, close: stop}, nil
}

func haproxyCommand(s *instance) []string {
	return []string{"haproxy", "-W", "-db", "-f", s.write("haproxy.conf", strings.NewReplacer("DIR", s.Dir, "ADDRESS", s.address()).Replace(`
global
	stats socket DIR/admin level admin
	nbthread 2
defaults
	mode http
	timeout connect 60s
	timeout client 600s
	timeout server 600s
frontend all
	bind ADDRESS
	http-request return status 200 content-type text/plain string hello
`))}
}

// haproxyClient asks over the socket for administration, too: haproxy binds it under another name and renames it.
func haproxyClient(s *instance) (*client, error) {
	w := newWeb(s)
	admin := func(command string) (string, error) {
		conn, err := net.DialTimeout("unix", s.path("admin"), patience)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, command+"\n"); err != nil {
			return "", err
		}
		b, err := io.ReadAll(conn)
		return strings.TrimSpace(string(b)), err
	}
	check := func() error {
		info, err := admin("show info")
		if err == nil && !strings.Contains(info, "Name: HAProxy") {
			err = fmt.Errorf("show info: %q", info)
		}
		return errors.Join(err, w.hello())
	}
	limit := func() (string, error) {
		info, err := admin("show info")
		_, limit, _ := strings.Cut(info, "\nMaxconn: ")
		limit, _, _ = strings.Cut(limit, "\n")
		return limit, err
	}
	change := func() error {
		_, err := admin("set maxconn global 17")
		return err
	}
	return &client{check: check, load: w.hello, state: limit, change: change, close: w.CloseIdleConnections}, nil
}
