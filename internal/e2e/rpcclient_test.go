package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// rpcClient is a raw client of the RPC protocol.
type rpcClient struct {
	t      testing.TB
	socket int
	cmd    *exec.Cmd // criu swrk; nil for a client of the service
	said   bytes.Buffer
	// told are the phases the server told of, in order, with the pid where there was one.
	told []string
	// refuse is the phase that is answered by a failure, leave the one at which the client closes its socket.
	refuse, leave string
	// external is the answer to query-ext-files.
	external []string
	// master is the terminal that came with orphan-pts-master.
	master *os.File
}

// seqpacket makes a pair of sockets.
func seqpacket(t testing.TB) (ours int, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "criu swrk")
}

// startSwrk starts `criu swrk` with more descriptors, from 4 on.
func startSwrk(t testing.TB, more ...*os.File) *rpcClient {
	t.Helper()
	becomeSubreaper(t)
	ours, theirs := seqpacket(t)
	defer theirs.Close()
	c := &rpcClient{t: t, socket: ours, cmd: exec.Command(tools.Criu, "swrk", "3")}
	c.cmd.ExtraFiles = append([]*os.File{theirs}, more...)
	c.cmd.Stderr, c.cmd.WaitDelay = &c.said, time.Second
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close(); c.cmd.Process.Kill(); c.cmd.Wait() })
	return c
}

// bound has every wait for the server end some day.
func (c *rpcClient) bound() {
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(c.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rpcClient) close() {
	if c.socket >= 0 {
		unix.Close(c.socket)
		c.socket = -1
	}
}

func (c *rpcClient) send(req *rpc.CriuReq) {
	c.t.Helper()
	msg, err := req.MarshalVT()
	if err != nil {
		c.t.Fatal(err)
	}
	c.sendRaw(msg)
}

func (c *rpcClient) sendRaw(msg []byte) {
	c.t.Helper()
	if err := unix.Sendmsg(c.socket, msg, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		c.t.Fatal(err)
	}
}

// receive receives one message into as much room as go-criu has; io.EOF: the server is gone.
func (c *rpcClient) receive() (*rpc.CriuResp, error) {
	c.t.Helper()
	c.bound()
	buf, oob := make([]byte, 8192), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(c.socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, _, _, err = unix.Recvmsg(c.socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		c.t.Fatalf("receive: %v; stderr: %s", err, c.said.String())
	}
	if n == 0 {
		return nil, io.EOF
	}
	resp := &rpc.CriuResp{}
	if err := resp.UnmarshalVT(buf[:n]); err != nil {
		c.t.Fatal(err)
	}
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) > 0 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil {
			c.master = os.NewFile(uintptr(fds[0]), resp.GetNotify().GetScript())
		}
	}
	return resp, nil
}

// ask sends a request and returns the answer; in between it does what the client is made to do with phases.
func (c *rpcClient) ask(typ rpc.CriuReqType, o *rpc.CriuOpts, more ...func(*rpc.CriuReq)) *rpc.CriuResp {
	c.t.Helper()
	req := &rpc.CriuReq{Type: &typ, Opts: o}
	for _, f := range more {
		f(req)
	}
	c.send(req)
	for {
		resp, err := c.receive()
		if err != nil {
			return nil
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			return resp
		}
		phase := resp.GetNotify().GetScript()
		if resp.GetNotify().Pid != nil {
			c.told = append(c.told, fmt.Sprintf("%s(%d)", phase, resp.GetNotify().GetPid()))
		} else {
			c.told = append(c.told, phase)
		}
		if phase == c.leave {
			c.close()
			return nil
		}
		reply := &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: new(phase != c.refuse)}
		if phase == "query-ext-files" && c.external != nil {
			reply.Opts = &rpc.CriuOpts{ImagesDirFd: new(int32(-1)), External: c.external}
		}
		c.send(reply)
	}
}

// end closes the connection and returns the exit status of criu swrk.
func (c *rpcClient) end() int {
	c.t.Helper()
	c.close()
	if err := c.cmd.Wait(); c.cmd.ProcessState.ExitCode() < 0 {
		c.t.Errorf("criu swrk: %v: %s", err, c.said.String())
	}
	return c.cmd.ProcessState.ExitCode()
}

// must fails the test unless an answer says that all went well.
func (c *rpcClient) must(resp *rpc.CriuResp, typ rpc.CriuReqType, images string) {
	c.t.Helper()
	if resp == nil {
		c.t.Fatalf("no answer to %v; stderr: %s", typ, c.said.String())
	}
	if !resp.GetSuccess() || resp.GetType() != typ {
		c.t.Fatalf("%v: %v %v: errno %d, %s; stderr: %s\n%s", typ, resp.GetType(), resp.GetSuccess(), resp.GetCrErrno(), resp.GetCrErrmsg(),
			c.said.String(), errorsOf(images+"/"+logOf(typ)))
	}
}

func logOf(typ rpc.CriuReqType) string { return strings.ToLower(typ.String()) + ".log" }

// optsFor are the options that each request for a target has.
func optsFor(t testing.TB, typ rpc.CriuReqType, images string, pid int) *rpc.CriuOpts {
	t.Helper()
	dir, err := os.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	o := &rpc.CriuOpts{ImagesDirFd: new(int32(dir.Fd())), LogLevel: new(int32(4)), LogFile: new(logOf(typ))}
	if pid > 0 {
		o.Pid = new(int32(pid))
	}
	return o
}

// parentOf is the parent of a task.
func parentOf(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	ppid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}
