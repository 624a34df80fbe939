package stages

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cryo/internal/guardian"
	"cryo/internal/nsenter"
	"cryo/internal/options"
	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// fileOptions is what the planner of files has to know of the user's wishes and the tool's rights.
func (r *restorer) fileOptions() (*restorers.FileOptions, error) {
	for _, i := range r.o.InheritFDs {
		if _, err := unix.FcntlInt(uintptr(i.FD), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("--inherit-fd fd[%d]:%s: the tool has no such descriptor", i.FD, i.Key)
		}
	}
	o := &restorers.FileOptions{
		SizeOnly: r.o.FileValidation == options.ValidateFileSize, SkipModeBits: r.o.SkipFileRWXCheck,
		Inherit: r.o.InheritFDs, ExtUnixSk: r.o.ExtUnixSk.Allow, ToolPID: os.Getpid(), ShellJob: r.o.ShellJob, Terminal: -1,
		TCPEstablished: r.o.TCPEstablished, TCPClose: r.o.TCPClose,
	}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		o.Terminal = 0
	}
	if r.o.OrphanPtsMaster && r.o.Client != nil {
		o.PtyMaster = r.o.Client.PtyMaster
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, fmt.Errorf("limit of open files: %w", err)
	}
	o.Limits = restorers.Limits{Soft: lim.Cur, Hard: lim.Max, Max: lim.Max}
	if most, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(most)), 10, 64); err == nil {
			o.Limits.Max = n
		}
	}
	o.Limits.MayRaise = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lim.Cur, Max: lim.Max + 1}) == nil
	if o.Limits.MayRaise {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return nil, fmt.Errorf("limit of open files: %w", err)
		}
	}
	return o, nil
}

// hiddenFiles makes the files that have lost their names. While one has a name there is a guardian to take it away.
func (r *restorer) hiddenFiles(s *pipeline.Stage, p *restorePlan) error {
	if !p.paths.Hidden() {
		return nil
	}
	if err := r.startGuardian(); err != nil {
		return err
	}
	return p.paths.Prepare(s.Context(), r.trackName(s))
}

// trackName takes a name away that the restore has made, if it fails or, where there is a guardian, if it is killed.
func (r *restorer) trackName(s *pipeline.Stage) restorers.Track {
	return func(t restorers.Trace) (func(), error) {
		dir, err := os.OpenFile(filepath.Dir(t.Path), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		step, err := s.Undo().Push("remove "+t.Path, 0, func(context.Context) error { return t.Remove() },
			guardian.RemoveFile{Dir: dir, Name: filepath.Base(t.Path), Dev: t.Dev, Ino: t.Ino, Directory: t.Directory})
		return step.Done, err
	}
}

// restoreFiles makes all descriptors. What the tool does for it, it does in the tree's network namespace.
func (r *restorer) restoreFiles(s *pipeline.Stage, f *family) (*family, error) {
	f.files.Track = r.trackName(s)
	err := nsenter.Net(r.net, func() error {
		return r.fileLevels(s, f, restorers.Open, restorers.Pair, restorers.Fill, restorers.Attach, restorers.Watch)
	})
	return f, err
}

// fileLevels goes level by level: every task has finished one before any begins the next.
func (r *restorer) fileLevels(s *pipeline.Stage, f *family, levels ...restorers.Level) error {
	pid := func(t *restorers.Table) int { return f.byNode[t.Node].PID() }
	for _, lv := range levels {
		if err := r.fileLevel(f, lv); err != nil {
			return err
		}
		if lv == restorers.Open {
			if err := r.foregroundGroups(f); err != nil {
				return err
			}
		}
		if err := f.files.After(s.Context(), lv, pid); err != nil {
			return err
		}
	}
	return nil
}

// foregroundGroups says on each terminal whom its keys signal.
func (r *restorer) foregroundGroups(f *family) error {
	return r.runAll(f.alive(), "foreground groups", func(m *member, b *remote.Builder) error {
		f.files.EmitForeground(m.Node, b)
		return nil
	})
}

// fileLevel runs one level in all tasks that have something to do there.
func (r *restorer) fileLevel(f *family, lv restorers.Level) error {
	tables := map[*member]*restorers.Table{}
	members := make([]*member, len(f.files.Tables))
	for i, t := range f.files.Tables {
		members[i] = f.byNode[t.Node]
		tables[members[i]] = t
	}
	return r.runAll(members, "files: "+lv.String(), func(m *member, b *remote.Builder) error {
		return f.files.EmitLevel(lv, tables[m], b)
	})
}
