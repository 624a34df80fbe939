// Package actions runs the action scripts that a user names for the phases of a dump or restore, and tells an RPC client
// about them, with criu's names, environment and order.
//
// A script finds in its environment CRTOOLS_SCRIPT_ACTION, the phase; CRTOOLS_IMAGE_DIR, the images directory as a path
// through /proc of the tool; and CRTOOLS_INIT_PID, the pid of the tree's root as the tool sees it, once there is one. It
// runs in the tool's working directory, without standard input, and what it prints goes to the log. All scripts of a phase
// are run even if one fails; a phase fails when any of them does.
package actions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Phase is a point of a dump or restore at which scripts run.
type Phase string

// The phases, in criu's words.
const (
	PreStream           Phase = "pre-stream"
	PreDump             Phase = "pre-dump"
	PostDump            Phase = "post-dump"
	PreRestore          Phase = "pre-restore"
	PostRestore         Phase = "post-restore"
	NetworkLock         Phase = "network-lock"
	NetworkUnlock       Phase = "network-unlock"
	SetupNamespaces     Phase = "setup-namespaces"
	PostSetupNamespaces Phase = "post-setup-namespaces"
	PreResume           Phase = "pre-resume"
	PostResume          Phase = "post-resume"
	OrphanPtsMaster     Phase = "orphan-pts-master"
	StatusReady         Phase = "status-ready"
	QueryExtFiles       Phase = "query-ext-files"
)

// Client is who asked for a dump or restore and wants to follow it: an RPC client, or a Go caller. An error of a method
// fails the phase, and with it the work. Methods are called one at a time.
type Client interface {
	// Phase tells of a phase. initPID is the pid of the tree's root as the tool sees it, 0 as long as there is none.
	Phase(ctx context.Context, p Phase, initPID int) error
	// External asks for objects of the tree that stay outside, in the notation of --external, just before it is frozen.
	External(ctx context.Context) ([]string, error)
	// PtyMaster hands over the master of the restored tree's terminal, which is closed when it returns.
	PtyMaster(ctx context.Context, master *os.File) error
}

// Runner runs the scripts of one dump or restore. Its zero value runs none. It is safe for concurrent use.
type Runner struct {
	// Scripts are programs, in the order of the options that named them. The last is run first, as by criu.
	Scripts []string
	// ImageDir is the open images directory, nil if there is none (the set is streamed).
	ImageDir *os.File
	// Client is told about a phase before scripts run; nil if there is none.
	Client Client

	initPID atomic.Int64
	mu      sync.Mutex // one phase at a time
}

// SetInit makes the pid of the tree's root known to later phases.
func (r *Runner) SetInit(pid int) { r.initPID.Store(int64(pid)) }

// Any says whether there is anything to run. Safe on a nil Runner.
func (r *Runner) Any() bool { return r != nil && (len(r.Scripts) > 0 || r.Client != nil) }

// Run runs a phase. The scripts are killed when ctx ends. Safe on a nil Runner.
func (r *Runner) Run(ctx context.Context, p Phase) error {
	if !r.Any() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slog.Debug("Running " + string(p) + " scripts")
	if r.Client != nil {
		if err := r.Client.Phase(ctx, p, int(r.initPID.Load())); err != nil {
			return fmt.Errorf("action %s: %w", p, err)
		}
	}
	var failed []error
	for i := len(r.Scripts) - 1; i >= 0; i-- {
		failed = append(failed, r.script(ctx, p, r.Scripts[i]))
	}
	return errors.Join(failed...)
}

func (r *Runner) script(ctx context.Context, p Phase, path string) error {
	slog.Debug("action script", "path", path)
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "CRTOOLS_SCRIPT_ACTION="+string(p))
	if r.ImageDir != nil {
		cmd.Env = append(cmd.Env, fmt.Sprintf("CRTOOLS_IMAGE_DIR=/proc/%d/fd/%d", os.Getpid(), r.ImageDir.Fd()))
	}
	if pid := r.initPID.Load(); pid > 0 {
		cmd.Env = append(cmd.Env, "CRTOOLS_INIT_PID="+strconv.FormatInt(pid, 10))
	}
	said, err := output(cmd)
	for line := range strings.Lines(said) {
		slog.Info(strings.TrimRight(line, "\n"), "script", path)
	}
	if err != nil {
		return fmt.Errorf("action script %s failed at %s: %w", path, p, err)
	}
	return nil
}

// maxOutput bounds what is kept of a script's output in bytes.
const maxOutput = 64 << 10

// output runs cmd and returns what it printed. It goes through a file in memory, not a pipe, so that a script that
// leaves a process behind does not hold the phase up.
func output(cmd *exec.Cmd) (string, error) {
	fd, err := unix.MemfdCreate("criu-action", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("criu-action", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return "", fmt.Errorf("memfd for output: %w", err)
	}
	f := os.NewFile(uintptr(fd), "output")
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	runErr := cmd.Run()
	buf := make([]byte, maxOutput)
	n, _ := f.ReadAt(buf, 0)
	return string(buf[:n]), runErr
}
