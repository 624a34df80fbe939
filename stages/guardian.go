package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"cryo/internal/guardian"
	"cryo/internal/image"
	"cryo/internal/log"
	"cryo/internal/netlock"
	"cryo/internal/procfs"
	"cryo/internal/tcprepair"
	"cryo/pipeline"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// GuardianKinds are the undo steps of dumps and restores that the guardian can do. Whoever wants a guardian calls
// guardian.Main(GuardianKinds()...) first thing in main.
func GuardianKinds() []guardian.Kind {
	return []guardian.Kind{
		{Name: killTasks{}.UndoKind(), Do: doKillTasks},
		{Name: (*claim)(nil).UndoKind(), Do: doClaim},
		{Name: removeSet{}.UndoKind(), Do: doRemoveSet},
		{Name: netlock.Record{}.UndoKind(), Do: netlock.DoRecord},
		{Name: tcprepair.Sockets{}.UndoKind(), Do: tcprepair.DoLeave},
		{Name: tcprepair.Silenced{}.UndoKind(), Do: tcprepair.DoEnter},
		{Name: removeGroup{}.UndoKind(), Do: doRemoveGroup},
		{Name: removeSegment{}.UndoKind(), Do: doRemoveSegment},
		{Name: lateTask{}.UndoKind(), Do: doEndLate},
		{Name: endCopies{}.UndoKind(), Do: doEndCopies},
	}
}

// killTasks ends tasks that a dump has committed to end.
type killTasks struct{ Tasks []taskID }

// taskID names a task whose pid may be somebody else's by the time it is used.
type taskID struct {
	Pid   int
	Start uint64 // start time in ticks since boot
}

// UndoKind implements pipeline.UndoRecord.
func (killTasks) UndoKind() string { return "kill-tasks" }

func doKillTasks(_ context.Context, data json.RawMessage, _ []int) error {
	var r killTasks
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	var errs []error
	for _, t := range r.Tasks {
		errs = append(errs, t.kill())
	}
	return errors.Join(errs...)
}

// kill ends the task if it is still the same. The pidfd is taken first, so what is killed is what was looked at.
func (t taskID) kill() error {
	pidfd, err := unix.PidfdOpen(t.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_open of task %d: %w", t.Pid, err)
	}
	defer unix.Close(pidfd)
	dir, err := procfs.OpenTask(t.Pid)
	if err != nil {
		return nil // it has ended
	}
	defer dir.Close()
	if stat, err := dir.Stat(); err != nil || stat.StartTime != t.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill task %d: %w", t.Pid, err)
	}
	return nil
}

// removeSet removes the image files that a dump has made in a directory, and no other: those made since it began.
type removeSet struct {
	Dir *os.File `json:"-"`
	// Since is the time the dump began, by the clock of the images' filesystem: birth or change of a file just made.
	Since int64
}

// UndoKind implements pipeline.UndoRecord.
func (removeSet) UndoKind() string { return "remove-set" }

// Descriptors implements guardian.Holder.
func (r removeSet) Descriptors() []*os.File { return []*os.File{r.Dir} }

func doRemoveSet(_ context.Context, data json.RawMessage, fds []int) error {
	var r removeSet
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if len(fds) != 1 {
		return errors.New("no directory came with the record")
	}
	// The descriptor that was sent shares its position with others.
	fd, err := unix.Openat(fds[0], ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "images directory")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		var st unix.Stat_t
		if !isImage(name) || unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Ctim.Nano() < r.Since {
			continue
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// isImage says whether a file may be of an image set, by its name.
func isImage(name string) bool {
	return strings.HasSuffix(name, ".img") || strings.HasSuffix(name, ".img.tmp") || name == "parent" || name == image.ParentID || name == sinks.SumsName
}

// guardianLaunch is a guardian that is being started.
type guardianLaunch struct {
	done  chan struct{}
	guard *guardian.Guardian // nil: the executable is not made to be one
	err   error
}

// launchGuardian starts a guardian beside what the caller does next. What it does goes to the log.
func launchGuardian() *guardianLaunch {
	l := &guardianLaunch{done: make(chan struct{})}
	if !guardian.Available() {
		close(l.done)
		return l
	}
	go func() {
		defer close(l.done)
		l.guard, l.err = guardian.Start(log.File(slog.Default()))
	}()
	return l
}

// wait waits for the guardian. If it is nil, nothing is kept.
func (l *guardianLaunch) wait() (*guardian.Guardian, error) {
	<-l.done
	return l.guard, l.err
}

// Record implements pipeline.Journal.
func (l *guardianLaunch) Record(r pipeline.UndoRecord) (forget func(), err error) {
	if g, err := l.wait(); g == nil {
		return func() {}, err
	}
	return l.guard.Record(r)
}

// Commit implements pipeline.Journal.
func (l *guardianLaunch) Commit() error {
	if g, err := l.wait(); g == nil {
		return err
	}
	return l.guard.Commit()
}

// dismiss tells a guardian for which nothing is left to be done to end, which close then need not wait for as long. It says
// whether that is so.
func (l *guardianLaunch) dismiss() bool {
	<-l.done
	return l.guard == nil || l.guard.Dismiss()
}

// close lets the guardian go, which does first what is left to be done.
func (l *guardianLaunch) close() error {
	if <-l.done; l.guard != nil {
		return l.guard.Close()
	}
	return nil
}

// pidsPerRecord keeps a record below the size of a message.
const pidsPerRecord = 2000
