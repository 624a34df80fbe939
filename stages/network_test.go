package stages

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectionFD is where the tasks of startTree have a connection.
const connectionFD = 3

// treeConn is the test's end of it.
var treeConn net.Conn

// connected makes a TCP connection; one end is for a task.
func connected(t *testing.T) (own net.Conn, task *os.File) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if own, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	other, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := own.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if task, err = other.File(); err != nil {
		t.Fatal(err)
	}
	return own, task
}

// connection is what a dump may not change in the connection of a task: repair mode, options, its state, and that packets
// get through.
func connection(t *testing.T, pid int) string {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, connectionFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var values []int
	for _, o := range [][2]int{{unix.SOL_TCP, unix.TCP_REPAIR}, {unix.SOL_SOCKET, unix.SO_REUSEADDR}, {unix.SOL_SOCKET, unix.SO_ERROR}} {
		v, err := unix.GetsockoptInt(fd, o[0], o[1])
		if err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	passes(t, fd)
	return fmt.Sprintf("options %v state %d", values, info.State)
}

// passes sends a byte and waits until it has got to the task's end.
func passes(t *testing.T, fd int) {
	t.Helper()
	queued, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err == nil {
		_, err = treeConn.Write([]byte("x"))
	}
	for end, n := time.Now().Add(time.Minute), 0; err == nil && n <= queued; time.Sleep(time.Millisecond) {
		if n, err = unix.IoctlGetInt(fd, unix.SIOCINQ); time.Now().After(end) {
			t.Fatal("nothing gets to the task's end of the connection")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
