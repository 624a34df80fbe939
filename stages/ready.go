package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"cryo/internal/actions"
	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// WritePidFile makes a file that must not exist and writes a pid to it, without a newline, as criu's readers expect.
func WritePidFile(path string, pid int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("pid file: %w: remove it if it is an old one", err)
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}

// SignalReady says that a server answers now: a zero byte goes to o.StatusFD, which is closed, and action scripts and the
// client are told.
func SignalReady(ctx context.Context, o *options.Options) error {
	if o.StatusFD >= 0 {
		_, err := unix.Write(o.StatusFD, []byte{0})
		if err = errors.Join(err, unix.Close(o.StatusFD)); err != nil {
			return fmt.Errorf("--status-fd %d: %w", o.StatusFD, err)
		}
	}
	scripts := actions.Runner{Scripts: o.ActionScripts, Client: o.Client}
	return scripts.Run(ctx, actions.StatusReady)
}
