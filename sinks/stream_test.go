package sinks_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"

	img_streamer "github.com/checkpoint-restore/go-criu/v8/crit/images/img-streamer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// checkSource compares what a source has with the golden set, byte for byte.
func checkSource(t *testing.T, src image.Source) {
	t.Helper()
	all, err := os.ReadDir(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		want, err := os.ReadFile(filepath.Join(golden, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := src.Open(e.Name())
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from %d", e.Name(), len(got), len(want))
		}
	}
	if there, err := src.Exists("fifo.img"); there || err != nil {
		t.Errorf("Exists of what is not there: %v, %v", there, err)
	}
	if _, err := src.Open("fifo.img"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of what is not there: %v", err)
	}
	readInventory(t, src)
}

func goldenStream(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	to := sinks.NewStream(sinks.StreamOptions{}, &out)
	src := openSet(t, golden)
	copyMetadata(t, golden, to, isPages)
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestStream(t *testing.T) {
	src, err := sinks.ReadStream(nil, bytes.NewReader(goldenStream(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	checkSource(t, src)
	pages, err := src.OpenPages(2)
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	if b := make([]byte, 1); pages.Size == 0 {
		t.Errorf("pages: %+v", pages)
	} else if _, err := pages.ReadAt(b, pages.Size-1); err != nil {
		t.Error(err)
	}
}

// A stream that is cut anywhere is no set, and neither is one with a byte changed.
func TestStreamDamaged(t *testing.T) {
	whole := goldenStream(t)
	try := func(b []byte, what string, at int) {
		if src, err := sinks.ReadStream(nil, bytes.NewReader(b)); err == nil {
			src.Close()
			t.Errorf("%s at %d of %d was not noticed", what, at, len(whole))
		}
	}
	for at := 0; at < len(whole); at += 1 + len(whole)/500 {
		try(whole[:at], "cut", at)
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		try(b, "change", at)
	}
	try(whole[:len(whole)-1], "cut", len(whole)-1)
	try(append(bytes.Clone(whole), 0), "a byte more", len(whole))
	_, err := sinks.ReadStream(nil, bytes.NewReader(whole[:len(whole)/2]))
	if err == nil || !strings.Contains(err.Error(), "breaks off") {
		t.Errorf("half a stream: %v", err)
	}
}

func FuzzReadStream(f *testing.F) {
	whole := goldenStream(f)
	f.Add(whole[:2000])
	f.Add(append(bytes.Clone(whole[:200]), whole[len(whole)-300:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if src, err := sinks.ReadStream(nil, bytes.NewReader(b)); err == nil {
			src.Close()
		}
	})
}

// fakeStreamer behaves as criu-image-streamer does: it keeps what is sent to its capture socket and gives each file
// out once through its serve socket.
type fakeStreamer struct {
	t     *testing.T
	dir   string
	files map[string][]byte
	sent  map[string]bool
}

func (s *fakeStreamer) listen(name string, serve func(*net.UnixConn)) (wait func()) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(s.dir, name)})
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer ln.Close()
		conn, err := ln.AcceptUnix()
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		serve(conn)
	}()
	return func() { <-done }
}

func (s *fakeStreamer) request(conn *net.UnixConn) (string, bool) {
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return "", false
	}
	b := make([]byte, binary.LittleEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		s.t.Error(err)
		return "", false
	}
	var req img_streamer.ImgStreamerRequestEntry
	if err := proto.Unmarshal(b, &req); err != nil {
		s.t.Error(err)
	}
	return req.GetFilename(), true
}

func (s *fakeStreamer) pipe(conn *net.UnixConn) *os.File {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:n])
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "pipe")
}

func (s *fakeStreamer) capture(conn *net.UnixConn) {
	var all sync.WaitGroup
	var mu sync.Mutex
	for {
		name, ok := s.request(conn)
		if !ok {
			break
		}
		p := s.pipe(conn)
		all.Go(func() {
			defer p.Close()
			b, err := io.ReadAll(p)
			if err != nil {
				s.t.Error(err)
			}
			mu.Lock()
			s.files[name] = b
			mu.Unlock()
		})
	}
	all.Wait()
}

func (s *fakeStreamer) serve(conn *net.UnixConn) {
	for {
		name, ok := s.request(conn)
		if !ok {
			return
		}
		b, exists := s.files[name]
		if s.sent[name] {
			s.t.Errorf("%s is asked for twice", name)
		}
		s.sent[name] = true
		reply, _ := proto.Marshal(&img_streamer.ImgStreamerReplyEntry{Exists: &exists})
		conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(reply))), reply...))
		if exists {
			p := s.pipe(conn)
			p.Write(b)
			p.Close()
		}
	}
}

func TestStreamer(t *testing.T) {
	short, err := os.MkdirTemp("/tmp", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	// A path that does not fit into a socket address.
	dir := filepath.Join(short, strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := sinks.NewStreamer(dir); err == nil || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("without a streamer: %v", err)
	}
	s := &fakeStreamer{t: t, dir: short, files: map[string][]byte{}, sent: map[string]bool{}}
	wait := s.listen("streamer-capture.sock", s.capture)
	if err := os.Rename(filepath.Join(short, "streamer-capture.sock"), filepath.Join(dir, "streamer-capture.sock")); err != nil {
		t.Fatal(err)
	}
	to, err := sinks.NewStreamer(dir)
	if err != nil {
		t.Fatal(err)
	}
	src := openSet(t, golden)
	copyMetadata(t, golden, to, isPages)
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Fatal(err)
	}
	wait()
	for name, b := range s.files {
		want, err := os.ReadFile(filepath.Join(golden, name))
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: %d bytes arrived of %d (%v)", name, len(b), len(want), err)
		}
	}
	wait = s.listen("streamer-serve.sock", s.serve)
	from, err := sinks.OpenStreamer(short)
	if err != nil {
		t.Fatal(err)
	}
	checkSource(t, from)
	from.Close()
	wait()
}

// criu's own use of the streamer's sockets: what it dumps through them can be read here, and restored by it. It shows
// too that the streamer of these tests behaves as criu expects of one.
func TestStreamerOfCriu(t *testing.T) {
	peer := criuPeer(t)
	dir, err := os.MkdirTemp("/tmp", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	run := func(args ...string) {
		t.Helper()
		args = append(args, "--stream", "-D", dir, "-v4", "-o", "criu.log")
		if out, err := exec.Command(peer, args...).CombinedOutput(); err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "criu.log"))
			t.Fatalf("criu %s: %v\n%s%s", args[0], err, out, log)
		}
	}
	target := exec.Command("sleep", "1000")
	target.SysProcAttr = newSession()
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	defer target.Process.Kill()
	pid := target.Process.Pid
	s := &fakeStreamer{t: t, dir: dir, files: map[string][]byte{}, sent: map[string]bool{}}
	wait := s.listen("streamer-capture.sock", s.capture)
	run("dump", "-t", itoa(pid))
	wait()
	target.Wait()

	wait = s.listen("streamer-serve.sock", s.serve)
	src, err := sinks.OpenStreamer(dir)
	if err != nil {
		t.Fatal(err)
	}
	readInventory(t, src)
	maps, err := image.ReadPagemap(src, image.TaskPages, uint64(pid))
	if err != nil {
		t.Fatal(err)
	}
	var present int64
	for r, err := range maps.Runs() {
		if err != nil {
			t.Fatal(err)
		}
		if r.Flags&image.PEPresent != 0 {
			present += int64(r.Bytes())
		}
	}
	pages, err := src.OpenPages(maps.PagesID)
	if err != nil {
		t.Fatal(err)
	}
	if pages.Size != present {
		t.Errorf("%d bytes of pages came where the page map tells of %d", pages.Size, present)
	}
	if err := errors.Join(maps.Close(), pages.Close(), src.Close()); err != nil {
		t.Error(err)
	}
	wait()

	s.sent = map[string]bool{}
	wait = s.listen("streamer-serve.sock", s.serve)
	run("restore", "-d")
	defer killWait(pid)
	wait()
	if comm, _ := os.ReadFile("/proc/" + itoa(pid) + "/comm"); string(comm) != "sleep\n" {
		t.Errorf("what was restored is %q", comm)
	}
}
