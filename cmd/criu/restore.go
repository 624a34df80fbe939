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

// restore brings a tree back and, with --exec-cmd, becomes the command that is then the parent of its root.
func restore(ctx context.Context, o *options.Options) error {
	if err := stages.Restore(ctx, o); err != nil || len(o.ExecCmd) == 0 {
		return err
	}
	path, err := exec.LookPath(o.ExecCmd[0])
	if err == nil {
		err = syscall.Exec(path, o.ExecCmd, os.Environ())
	}
	return fmt.Errorf("--exec-cmd: the tree is restored, but %s cannot be run: %w", o.ExecCmd[0], err)
}
