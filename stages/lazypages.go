package stages

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"cryo/internal/lazy"
	"cryo/internal/options"
	"cryo/internal/remote"
	"cryo/internal/uffd"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sys/unix"
)

// lazyServer finds the server of a lazy restore: one that was started by hand and listens in the work directory, or one of
// the restore's own, which ends by itself when all pages are in.
func lazyServer(o *options.Options, images *os.File) (*lazy.Client, error) {
	if images == nil || o.Stream {
		return nil, fmt.Errorf("--lazy-pages reads pages for as long as the tasks want them: it needs the set in a directory")
	}
	path := filepath.Join(o.Work(), lazy.SocketName)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		return lazy.NewClient(conn), nil
	}
	return startLazyServer(o, images)
}

// handOver gives the memory that comes late into the hands of the server. From here on a task that touches it waits for its
// page.
func (r *restorer) handOver(_ *pipeline.Stage, f *family) (*family, error) {
	for _, m := range f.members {
		if !m.Helper() && (m.Dead() || sharesMemory(m.Node)) { // nothing comes late
			if err := r.lazy.Dead(m.ID); err != nil {
				return nil, err
			}
		}
	}
	return f, r.tracer.Do(func() error {
		for _, m := range f.alive() {
			if sharesMemory(m.Node) {
				continue
			}
			if err := r.handOverTask(m, f.late[m.Node]); err != nil {
				return fmt.Errorf("%s: %w", m.Node, err)
			}
		}
		return nil
	})
}

func (r *restorer) handOverTask(m *member, late []restorers.Range) error {
	b := remote.NewBuilder("userfaultfd")
	made := b.Call(unix.SYS_USERFAULTFD, remote.Imm(unix.O_CLOEXEC|unix.O_NONBLOCK)).Must()
	res, err := m.session.Run(b.Program())
	if err != nil {
		return err
	}
	n, err := res.Value(made)
	if err != nil {
		return err
	}
	fd, err := uffd.FromTask(m.PID(), int(n))
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := fd.API(uffd.NonCooperative); err != nil {
		return err
	}
	for _, area := range late {
		if can, err := fd.Register(area.Start, area.Len(), uffd.Missing); err != nil || can&uffd.CanCopy == 0 {
			return fmt.Errorf("memory at %x-%x cannot come late (restore without --lazy-pages): %w", area.Start, area.End, err)
		}
	}
	if err := r.lazy.Task(m.ID, m.Host, fd); err != nil {
		return err
	}
	b = remote.NewBuilder("hand userfaultfd over")
	b.Call(unix.SYS_CLOSE, remote.Imm(int(n))).Must().Discard()
	restorers.EmitStrings(b, m.MM)
	_, err = m.session.Run(b.Program())
	return err
}
