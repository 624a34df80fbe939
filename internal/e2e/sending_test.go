package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/pagexfer"

	"golang.org/x/sys/unix"
)

// TestTaskSends has a task send its pages to a page server itself, whole and with memory of zeros between.
func TestTaskSends(t *testing.T) {
	RequireRoot(t)
	for _, args := range [][]string{{"40"}, {"40", "zero"}, {"40", "text"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			target, images := tools.StartWorkload(t, "bigmem", args...), t.TempDir()
			port := startPageServer(t, images)
			target.Dump(tools.Criu, images, "--page-server", "--address", "127.0.0.1", "--port", port, "-v4")
			awaitEnd(t, target, filepath.Join(images, "server.pid"))
			log, err := os.ReadFile(filepath.Join(images, "dump.log"))
			if err != nil {
				t.Fatal(err)
			}
			itself := 0
			for line := range strings.Lines(string(log)) {
				if _, n, found := strings.Cut(line, " self="); found {
					fmt.Sscan(n, &itself)
				}
			}
			if zeros := len(args) == 2 && args[1] == "zero"; zeros != (itself == 0) {
				t.Errorf("the task has sent %d pages itself", itself)
			}
			target.Restore(tools.Criu, images)
			target.Go()
		})
	}
}

// startPageServer starts a page server that stores in images, and goes on by itself.
func startPageServer(t *testing.T, images string) (port string) {
	port = freePort(t)
	Must(t, filepath.Join(images, "server.log"), tools.Criu, "page-server", "-D", images, "--address", "127.0.0.1", "--port", port,
		"--daemon", "--pidfile", "server.pid", "-o", "server.log", "-v4")
	return port
}

// TestTaskSendsInVain has a task send its pages itself to a server that takes no more of them. It goes on as it was when the
// tool is killed meanwhile, asked to end, or when the server goes away.
func TestTaskSendsInVain(t *testing.T) {
	RequireRoot(t)
	for name, end := range map[string]func(tool *os.Process, server net.Conn) error{
		"killed":           func(tool *os.Process, _ net.Conn) error { return tool.Kill() },
		"asked to end":     func(tool *os.Process, _ net.Conn) error { return tool.Signal(unix.SIGTERM) },
		"server goes away": func(_ *os.Process, server net.Conn) error { return server.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			target, images := tools.StartWorkload(t, "bigmem", "96"), t.TempDir() // more than buffers hold
			before := map[int]string{target.Pid: traces(target.Pid)}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dump := exec.Command(tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", images, "-o", "dump.log", "-v4",
				"--page-server", "--address", "127.0.0.1", "--port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
			if err := dump.Start(); err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if err := server.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
				t.Fatal(err)
			}
			if err := takeUntilLarge(server); err != nil {
				t.Fatal(err)
			}
			target.await("a task that waits for the server", func() bool { return inCall(target.Pid, unix.SYS_PPOLL) })
			if err := end(dump.Process, server); err != nil {
				t.Fatal(err)
			}
			if dump.Wait() == nil {
				t.Error("the dump has succeeded")
			}
			target.untouched(before, filepath.Join(images, "dump.log"))
			target.Go()
		})
	}
}

// takeUntilLarge is a page server up to the first run that does not fit into the buffers of a socket.
func takeUntilLarge(conn net.Conn) error {
	msgs := pagexfer.Reader{R: conn}
	for {
		m, err := msgs.Read()
		if err != nil {
			return err
		}
		size := int64(m.Pages) * image.PageSize
		switch {
		case m.Cmd == pagexfer.Open2:
			_, err = conn.Write([]byte{0})
		case m.Cmd != pagexfer.AddF || uint32(m.Flags)&image.PEPresent == 0:
		case size > 15<<20:
			return nil
		default:
			_, err = io.CopyN(io.Discard, conn, size)
		}
		if err != nil {
			return err
		}
	}
}

// inCall says whether a process sleeps in a system call.
func inCall(pid, call int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	nr, _, _ := strings.Cut(string(b), " ")
	return nr == strconv.Itoa(call)
}
