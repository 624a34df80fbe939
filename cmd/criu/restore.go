package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	"cryo/internal/options"
	"cryo/stages"
)

// restore brings a tree back and, with --exec-cmd, becomes the command that is then the parent of its root.
func restore(ctx context.Context, o *options.Options) error {
	if err := restoreTree(ctx, o); err != nil || len(o.ExecCmd) == 0 {
		return err
	}
	return become(o)
}

// restoreTree brings a tree back.
func restoreTree(ctx context.Context, o *options.Options) error {
	err := stages.Restore(ctx, o)
	var own *stages.OwnIDError
	if errors.As(err, &own) && !again {
		return startAgain(own)
	}
	return err
}

// become makes this process the command that is to be the parent of the restored tree.
func become(o *options.Options) error {
	path, err := exec.LookPath(o.ExecCmd[0])
	if err == nil {
		err = syscall.Exec(path, o.ExecCmd, os.Environ())
	}
	return fmt.Errorf("--exec-cmd: the tree is restored, but %s cannot be run: %w", o.ExecCmd[0], err)
}

// againMark tells this program in its environment that it has executed itself.
const againMark = "CRYO_AGAIN"

// again says whether this program has executed itself. What it starts does not get to know it.
var again = func() bool {
	_, marked := os.LookupEnv(againMark)
	os.Unsetenv(againMark)
	return marked
}()

// beforeAgain keeps what the program needs when it executes itself.
var beforeAgain = func() error { return nil }

// startAgain makes this process execute its program again, with the same arguments, descriptors and pid, and other threads:
// a set wants the id of one of these.
func startAgain(reason error) error {
	slog.Info("Starting again", "because", reason)
	self, err := os.Executable()
	if err == nil {
		err = os.Chdir(startDir)
	}
	if err == nil {
		err = beforeAgain()
	}
	if err == nil {
		err = syscall.Exec(self, os.Args, append(os.Environ(), againMark+"=1"))
	}
	return fmt.Errorf("start again, because %w: %w", reason, err)
}
