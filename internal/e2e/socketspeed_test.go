package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketEnv has TestSocketLimit measure, or be the other process of that.
const socketEnv = "CRYO_BENCH_SOCKET"

// receivers are the plain ways to bring what comes by a socket into a file.
var receivers = map[string]func(conn, to *os.File, size int) error{"read and write": readWrite, "splice": spliceAll}

// socketLimit measures how long two programs take to move size bytes: one writes a buffer of its own into a socket of the
// loopback device, the other brings them into a file where images go. It is that of the fastest way.
func socketLimit(t *testing.T, size int) time.Duration {
	var best time.Duration
	for way := range receivers {
		out, err := again("TestSocketLimit", socketEnv, fmt.Sprint(size, " ", way)).Output()
		if err != nil {
			t.Fatal(err)
		}
		var test string
		var took time.Duration
		if _, err := fmt.Sscanf(string(out), "=== RUN %s\nmoved %d", &test, &took); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if best == 0 || took < best {
			best = took
		}
	}
	return best
}

func TestSocketLimit(t *testing.T) {
	role, way, _ := strings.Cut(os.Getenv(socketEnv), " ")
	size, err := strconv.Atoi(role)
	if role == "" {
		t.Skip("a part of the benchmark: make bench")
	}
	if err != nil {
		t.Fatal(err)
	}
	if way, inside := strings.CutPrefix(way, "receive by "); inside {
		receiveAll(t, way, size)
		return
	}
	conn, end := receiver(t, way, size)
	defer conn.Close()
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(buf); i += 8 {
		binary.NativeEndian.PutUint64(buf[i:], uint64(i)|1)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // it is ready
		t.Fatal(err)
	}
	began := time.Now()
	for len(buf) > 0 {
		n, err := unix.Write(int(conn.Fd()), buf[:min(len(buf), 1<<20)])
		if err != nil {
			t.Fatal(err)
		}
		buf = buf[n:]
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // it has all
		t.Fatal(err)
	}
	fmt.Printf("moved %d\n", time.Since(began))
	if err := end(); err != nil {
		t.Fatal(err)
	}
}

// receiver starts the process that receives, and returns the connection to it in blocking mode.
func receiver(t *testing.T, way string, size int) (conn *os.File, end func() error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	var files [2]*os.File
	for i, c := range []net.Conn{ours, theirs} {
		if files[i], err = c.(*net.TCPConn).File(); err != nil {
			t.Fatal(err)
		}
		files[i].Fd() // makes it block
	}
	defer files[1].Close()
	cmd := again("TestSocketLimit", socketEnv, fmt.Sprint(size, " receive by ", way))
	cmd.ExtraFiles = []*os.File{files[1]}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return files[0], cmd.Wait
}

// receiveAll is the process that receives, by the connection that it was started with.
func receiveAll(t *testing.T, way string, size int) {
	conn := os.NewFile(3, "connection")
	f, err := os.CreateTemp(os.Getenv("CRYO_BENCH_DIR"), "limit-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	conn.Write([]byte{0})
	if err := receivers[way](conn, f, size); err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte{0})
}

func readWrite(conn, to *os.File, size int) error {
	for buf := make([]byte, 512<<10); size > 0; {
		n, err := unix.Read(int(conn.Fd()), buf)
		if n <= 0 {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func spliceAll(conn, to *os.File, size int) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	for size > 0 {
		n, err := unix.Splice(int(conn.Fd()), nil, int(w.Fd()), nil, 1<<20, 0)
		if n <= 0 {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		for size -= int(n); n > 0; {
			m, err := unix.Splice(int(r.Fd()), nil, int(to.Fd()), nil, int(n), 0)
			if err != nil {
				return err
			}
			n -= m
		}
	}
	return nil
}
