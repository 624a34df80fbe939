// Package cgfreeze stops and starts a control group by its freezer: no task of it runs, and none can be made, from one
// moment to the next. Both kinds are known: cgroup.freeze of the unified hierarchy (Linux 5.2) and freezer.state of the
// freezer controller (2.6.28).
//
// A frozen task of the old kind answers no tracer until it is thawed; of the new kind it does, but runs no code.
package cgfreeze

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Group is a control group with a freezer.
type Group struct {
	path   string
	kind   *kind
	state  *os.File // cgroup.freeze or freezer.state
	report *os.File // where the kernel says how far it is
	found  bool     // it was frozen when it was opened
}

// kind is one of the two interfaces.
type kind struct {
	state, report string // files
	freeze, thaw  string // what is written to state
	frozen        string // a line of report when all tasks stand still
	asked         string // content of state while the group itself is asked to be frozen
	own           string // file that says so, if it is not state
}

var kinds = []*kind{
	{state: "cgroup.freeze", report: "cgroup.events", freeze: "1", thaw: "0", frozen: "frozen 1", asked: "1"},
	{state: "freezer.state", report: "freezer.state", freeze: "FROZEN", thaw: "THAWED", frozen: "FROZEN",
		own: "freezer.self_freezing", asked: "1"},
}

// Open finds the freezer of the control group whose directory is path, and notes whether it is frozen.
func Open(path string) (*Group, error) {
	for _, k := range kinds {
		state, err := os.OpenFile(filepath.Join(path, k.state), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("freezer: %w", err)
		}
		g := &Group{path: path, kind: k, state: state, report: state}
		if err := g.examine(); err != nil {
			g.Close()
			return nil, fmt.Errorf("freezer: %w", err)
		}
		return g, nil
	}
	return nil, fmt.Errorf("%s is no control group with a freezer: name its directory, as /sys/fs/cgroup/NAME", path)
}

func (g *Group) examine() (err error) {
	own := g.kind.own
	if own == "" {
		own = g.kind.state
	}
	asked, err := os.ReadFile(filepath.Join(g.path, own))
	if err != nil {
		return err
	}
	g.found = strings.TrimSpace(string(asked)) == g.kind.asked
	if g.kind.report != g.kind.state {
		g.report, err = os.Open(filepath.Join(g.path, g.kind.report))
	}
	return err
}

// Close closes the files; the group stays as it is.
func (g *Group) Close() {
	g.state.Close()
	if g.report != nil && g.report != g.state {
		g.report.Close()
	}
}

// Found reports whether the group was frozen when it was opened.
func (g *Group) Found() bool { return g.found }

// Undo tells what to write to which file to leave the group as it was found.
func (g *Group) Undo() (file *os.File, text string) {
	if g.found {
		return g.state, g.kind.freeze
	}
	return g.state, g.kind.thaw
}

// Leave puts the group back to how it was found and does not wait.
func (g *Group) Leave() error {
	_, text := g.Undo()
	return g.write(text)
}

// Freeze stops all tasks of the group and waits until they stand still.
func (g *Group) Freeze(ctx context.Context, deadline time.Time) error {
	err := g.reach(ctx, deadline, g.kind.freeze, true)
	if errors.Is(err, errLate) {
		return fmt.Errorf("control group %s does not freeze (a task may be in uninterruptible sleep): try again later, or give more time with --timeout", g.path)
	}
	return err
}

// Thaw lets the tasks go on, as far as nobody else holds them.
func (g *Group) Thaw(ctx context.Context, deadline time.Time) error {
	err := g.reach(ctx, deadline, g.kind.thaw, false)
	if errors.Is(err, errLate) {
		return fmt.Errorf("control group %s stays frozen: one above it is: thaw that first", g.path)
	}
	return err
}

var errLate = errors.New("too late")

// reach writes a state and waits for it. The old kind has to be asked again while tasks are on their way.
func (g *Group) reach(ctx context.Context, deadline time.Time, text string, frozen bool) error {
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		if err := g.write(text); err != nil {
			return err
		}
		is, err := g.frozen()
		if err != nil || is == frozen {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			return errLate
		}
		time.Sleep(pause)
	}
}

func (g *Group) write(text string) error {
	if _, err := g.state.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("freezer: %w", err)
	}
	return nil
}

// frozen reads what the kernel says. While the old kind is on its way to frozen it is neither.
func (g *Group) frozen() (bool, error) {
	buf := make([]byte, 256)
	n, err := g.report.ReadAt(buf, 0)
	if n == 0 && err != nil {
		return false, fmt.Errorf("freezer: %w", err)
	}
	for line := range strings.Lines(string(buf[:n])) {
		if strings.TrimSpace(line) == g.kind.frozen {
			return true, nil
		}
	}
	return false, nil
}
