package sinks_test

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

func newSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// killWait ends a task that is no child of this process and waits until it is gone.
func killWait(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
}
