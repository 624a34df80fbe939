package stages

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cryo/internal/dirty"
	"cryo/internal/image"
	"cryo/internal/migrate"
	"cryo/internal/options"
	"cryo/pipeline"
	"cryo/sinks"
)

// Migrate moves the tree of tasks below and including o.Tree to where criu receive waits at o.Address and o.Port. Its
// memory is sent while it runs, in rounds that each send what was written during the last, until they no longer shrink; then
// it stops, the rest is sent, and it goes on there. If anything fails before, it goes on here.
//
// In the images directory a directory for each round is made, which holds what the destination does not keep, and is removed at
// the end. Kernels that do not tell what was written (see package dirty) send everything while the tree stands still.
func Migrate(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Migrate); err != nil {
		return err
	}
	m, err := newMigration(ctx, o)
	if err != nil {
		return err
	}
	defer m.close()
	if err := m.precopy(ctx); err != nil {
		return err
	}
	return m.move(ctx)
}

// migration is the source's side.
type migration struct {
	o       *options.Options
	id      string
	control net.Conn
	images  *os.File
	sets    string // directory of the rounds' directories
	round   int
}

func newMigration(ctx context.Context, o *options.Options) (*migration, error) {
	if o.Port == 0 {
		return nil, errors.New("migrate needs --port, and --address unless the destination is this machine")
	}
	if o.Compress != "" || o.KeyFile != "" || o.Checksum {
		return nil, errors.New("migrate stores nothing that --compress, --key-file or --checksum would be for; --tls protects what it sends")
	}
	m := &migration{o: o, id: rand.Text()}
	var err error
	if m.images, err = imagesDir(o); err != nil {
		return nil, err
	}
	if m.images == nil {
		return nil, errors.New("migrate needs a directory for what it has to remember: -D - is none")
	}
	if m.sets, err = os.MkdirTemp(dirPath(m.images), "migrate-"); err == nil {
		m.control, err = m.dial(ctx, migrate.Message{Role: migrate.Control}, migrate.OK)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *migration) close() {
	if m.control != nil {
		m.control.Close()
	}
	if m.sets != "" {
		if err := os.RemoveAll(m.sets); err != nil {
			slog.Warn("what the migration remembered stays", "dir", m.sets, "err", err)
		}
	}
	m.images.Close()
}

// dial opens a connection to the destination and greets it.
func (m *migration) dial(ctx context.Context, hello migrate.Message, answer migrate.Op) (net.Conn, error) {
	conn, _, err := m.ask(ctx, hello, answer)
	return conn, err
}

func (m *migration) ask(ctx context.Context, hello migrate.Message, answer migrate.Op) (net.Conn, migrate.Message, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(m.o.Address, strconv.Itoa(m.o.Port)))
	if err != nil {
		return nil, migrate.Message{}, fmt.Errorf("destination: %w: is criu receive running there?", err)
	}
	if m.o.TLS {
		safe, err := tlsOf(m.o).Client(ctx, conn, m.o.Address)
		if err != nil {
			conn.Close()
			return nil, migrate.Message{}, fmt.Errorf("destination: %w", err)
		}
		conn = safe
	}
	hello.ID = m.id
	said, err := migrate.Greet(conn, hello, answer)
	if err != nil {
		conn.Close()
		return nil, said, fmt.Errorf("destination: %w", err)
	}
	return conn, said, nil
}

// Rounds are repeated as long as each leaves at most this share of the last.
const shrinks = 0.8

// fewPages is so little that another round is not worth it: some milliseconds of the stop.
const fewPages = 1024

// precopy sends the memory while the tree runs.
func (m *migration) precopy(ctx context.Context) error {
	last := uint64(0)
	for {
		if m.round >= m.o.Rounds {
			return nil
		}
		began := time.Now()
		written, err := m.preDump(ctx)
		if errors.Is(err, errNoTracking) {
			slog.Warn("The kernel does not tell what is written: the tree stands still while all its memory is sent")
			return nil
		}
		if err != nil {
			return err
		}
		slog.Info("pre-copy", "round", m.round, "pages", written, "took", time.Since(began).Round(time.Millisecond))
		if written <= fewPages || last > 0 && float64(written) > shrinks*float64(last) {
			return nil
		}
		last = written
	}
}

// nextRound agrees on another set and returns options for a dump into it and the connection its pages go to.
func (m *migration) nextRound(ctx context.Context) (*options.Options, net.Conn, error) {
	if err := migrate.Send(m.control, migrate.Message{Op: migrate.Round, Round: m.round + 1}); err != nil {
		return nil, nil, fmt.Errorf("destination: %w", err)
	}
	if _, err := migrate.Expect(m.control, migrate.OK); err != nil {
		return nil, nil, fmt.Errorf("destination: %w", err)
	}
	o := *m.o
	if m.round > 0 {
		o.PrevImagesDir = "../" + strconv.Itoa(m.round)
	}
	m.round++
	o.ImagesDir, o.ImagesDirFD = filepath.Join(m.sets, strconv.Itoa(m.round)), -1
	if err := os.Mkdir(o.ImagesDir, 0o700); err != nil {
		return nil, nil, err
	}
	o.PageServer = true
	conn, err := m.dial(ctx, migrate.Message{Role: migrate.Pages, Round: m.round}, migrate.OK)
	return &o, conn, err
}

// sinkTo makes the sink of a round.
func sinkTo(conn net.Conn) func(*options.Options, *os.File) (sinks.Sink, error) {
	return func(o *options.Options, dir *os.File) (sinks.Sink, error) {
		own, err := dup(dir)
		if err != nil {
			return nil, err
		}
		meta, err := sinks.NewDirFile(own, sinks.DirOptions{Sync: o.Sync, Parent: o.PrevImagesDir})
		if err != nil {
			return nil, err
		}
		return packed(o, overServer(o, meta, conn, false))
	}
}

// preDump sends what was written since the last round.
func (m *migration) preDump(ctx context.Context) (written uint64, err error) {
	if dirty.Kernel() == dirty.None {
		return 0, errNoTracking
	}
	o, conn, err := m.nextRound(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	o.Verb = options.PreDump
	d, err := preDumpTo(ctx, o, sinkTo(conn))
	if err != nil {
		return 0, err
	}
	return d.PagesWritten.Load() + d.SharedWritten.Load(), nil
}

// move stops the tree, sends the rest of it and lets the destination have it.
func (m *migration) move(ctx context.Context) error {
	o, conn, err := m.nextRound(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	o.Verb, o.Final = options.Dump, options.Kill
	o.TrackMem = o.PrevImagesDir != ""
	slog.Info("the tree stops", "round", m.round)
	_, err = runDumper(ctx, o, sinkTo(conn), func(d *dumper) *pipeline.Graph {
		d.give = m.handOver
		return d.graph()
	}, try{last: true})
	return err
}

// handOver is the last stage but one of the last dump: the set is complete, and the tree stands still here. It returns
// whether the tree runs at the destination.
func (m *migration) handOver(s *pipeline.Stage, committed func() error) (there bool, err error) {
	stop := context.AfterFunc(s.Context(), func() { m.control.SetDeadline(time.Now()) })
	if err := m.sendSet(); err != nil {
		return false, fmt.Errorf("destination: %w", err)
	}
	if err := migrate.Send(m.control, migrate.Message{Op: migrate.Restore, Round: m.round}); err != nil {
		return false, fmt.Errorf("destination: %w", err)
	}
	if _, err := migrate.Expect(m.control, migrate.Ready); err != nil {
		return false, fmt.Errorf("destination: %w", err)
	}
	// From here on the tree is given away: only the destination says whether it is ours again.
	if !stop() {
		return false, context.Cause(s.Context())
	}
	if err := committed(); err != nil {
		return false, err
	}
	said, err := m.give()
	var refused *migrate.RefusedError
	for wait := 100 * time.Millisecond; err != nil && !errors.As(err, &refused); wait = min(2*wait, 5*time.Second) {
		slog.Warn("The connection broke when the tree was given away: asking the destination whether it has it", "err", err)
		select {
		case <-s.Context().Done():
			return false, fmt.Errorf("the connection broke when the tree was given away: %w", errInDoubt)
		case <-time.After(wait):
		}
		var conn net.Conn
		if conn, said, err = m.ask(context.Background(), migrate.Message{Role: migrate.Ask}, migrate.Running); err == nil {
			migrate.Send(conn, migrate.Message{Op: migrate.Bye})
			conn.Close()
		}
	}
	if err != nil {
		return false, fmt.Errorf("destination: %w", err)
	}
	slog.Info("The tree runs at the destination", "pid", said.PID)
	return true, nil
}

// give says go and waits for the answer.
func (m *migration) give() (migrate.Message, error) {
	if err := migrate.Send(m.control, migrate.Message{Op: migrate.Go}); err != nil {
		return migrate.Message{}, err
	}
	said, err := migrate.Expect(m.control, migrate.Running)
	if err == nil {
		migrate.Send(m.control, migrate.Message{Op: migrate.Bye}) // if it does not arrive, the destination waits in vain
	}
	return said, err
}

// sendSet sends all files of the last set but page maps and pages, which are there already.
func (m *migration) sendSet() error {
	dir, err := os.Open(filepath.Join(m.sets, strconv.Itoa(m.round)))
	if err != nil {
		return err
	}
	set := image.NewDir(dir)
	defer set.Close()
	names, err := set.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".img") || sinks.IsSent(name) {
			continue
		}
		f, size, err := set.OpenFile(name)
		if err != nil {
			return err
		}
		err = migrate.Send(m.control, migrate.Message{Op: migrate.File, Name: name, Size: size})
		if err == nil {
			_, err = io.CopyN(m.control, f, size)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("send %s: %w", name, err)
		}
	}
	return nil
}

var errNoTracking = errors.New("the kernel does not tell what is written")
