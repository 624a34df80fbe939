package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"cryo/internal/options"
	"cryo/stages"
)

// A server goes to the background by starting this program again, with the same arguments and the socket that is
// listening already: who waits for the command to return may connect at once, and an address that is in use is still
// reported in the foreground.

// backgroundMark tells the second process in its environment what it is.
const backgroundMark = "CRYO_BACKGROUND"

// handedFD is where the second process finds the socket.
const handedFD = 3

// startDir is where the program was started, which relative arguments refer to; enterWorkDir leaves it.
var startDir string

func inBackground() bool { return os.Getenv(backgroundMark) != "" }

// handedOver is the socket in the second process.
func handedOver() *os.File { return os.NewFile(handedFD, "socket") }

// background starts the second process and returns its pid.
func background(socket *os.File) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("go to the background: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Dir = startDir
	cmd.Env = append(os.Environ(), backgroundMark+"=1")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("go to the background: %w", err)
	}
	pid := cmd.Process.Pid
	return pid, cmd.Process.Release()
}

// ready says that a server answers now: pid goes to the pid file and a zero byte to --status-fd, which is closed.
func ready(ctx context.Context, o *options.Options, pid int) error {
	if o.PidFile != "" {
		if err := stages.WritePidFile(o.PidFile, pid); err != nil {
			return err
		}
	}
	return stages.SignalReady(ctx, o)
}
