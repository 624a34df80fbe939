package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"cryo/internal/image"
	"cryo/internal/migrate"
	"cryo/internal/options"
	"cryo/pipeline"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// Receive waits at o.Address and o.Port for one tree that criu migrate moves here, and restores it with the options of a
// restore. Its images are put into a directory in the images directory, which is removed at the end.
func Receive(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Receive); err != nil {
		return err
	}
	if o.Port == 0 {
		return errors.New("receive needs --port, and --address unless all addresses of this machine will do")
	}
	images, err := imagesDir(o)
	if err != nil {
		return err
	}
	if images == nil {
		return errors.New("receive needs a directory for the images: -D - is none")
	}
	defer images.Close()
	l, err := ListenPages(ctx, o)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := SignalReady(ctx, o); err != nil {
		return err
	}
	v := &reception{o: o, pages: map[int]chan error{}, come: make(chan net.Conn, 1), decided: make(chan struct{}), settled: make(chan struct{})}
	if v.sets, err = os.MkdirTemp(dirPath(images), "migrate-"); err != nil {
		return err
	}
	defer os.RemoveAll(v.sets)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	go func() { cancel(v.listen(ctx, l)) }()
	var control net.Conn
	select {
	case control = <-v.come:
	case <-ctx.Done():
		return fmt.Errorf("receive: ended before a tree came: %w", context.Cause(ctx))
	}
	defer control.Close()
	defer context.AfterFunc(ctx, func() { control.SetDeadline(time.Now()) })()
	return v.receive(ctx, control)
}

// reception is the destination's side of one migration.
type reception struct {
	o    *options.Options
	sets string // directory of the sets' directories

	mu    sync.Mutex
	id    string // of the migration; empty before it has begun
	round int
	pages map[int]chan error // how the pages of a round arrived

	come    chan net.Conn
	ready   bool            // the source was told that its tree stands here
	outcome migrate.Message // once decided is closed: Running or Failed
	decided chan struct{}
	settled chan struct{} // closed when the source knows the outcome
	settle  sync.Once
}

// listen greets connections as they come.
func (v *reception) listen(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := v.greet(ctx, conn); err != nil {
				slog.Warn("receive: a connection was refused", "from", conn.RemoteAddr(), "err", err)
				conn.Close()
			}
		}()
	}
}

// greetBound is how long a connection may take to say what it is for.
const greetBound = 10 * time.Second

// greet finds out what a connection is for.
func (v *reception) greet(ctx context.Context, conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(greetBound))
	if v.o.TLS {
		safe, err := tlsOf(v.o).Server(ctx, conn)
		if err != nil {
			return err
		}
		conn = safe
	}
	hello, err := migrate.Greeted(conn)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case hello.Role == migrate.Control && v.id == "":
		v.id = hello.ID
		v.come <- conn
		return migrate.Send(conn, migrate.Message{Op: migrate.OK})
	case hello.ID != v.id:
		return errors.New("it is of another migration")
	case hello.Role == migrate.Pages:
		arrived := v.pages[hello.Round]
		if arrived == nil || hello.Round != v.round {
			return fmt.Errorf("nobody has asked for pages of round %d", hello.Round)
		}
		if err := migrate.Send(conn, migrate.Message{Op: migrate.OK}); err != nil {
			return err
		}
		go func() { arrived <- v.storePages(conn, hello.Round) }()
		return nil
	case hello.Role == migrate.Ask:
		go v.answer(conn)
		return nil
	}
	return fmt.Errorf("%q is no role", hello.Role)
}

// storePages receives the pages of a round.
func (v *reception) storePages(conn net.Conn, round int) error {
	defer conn.Close()
	f, err := os.Open(v.set(round))
	if err != nil {
		return err
	}
	dir, err := sinks.NewDirFile(f, sinks.DirOptions{Sync: v.o.Sync, PagesOnly: true, FirstPages: sinks.ServerPagesBase})
	if err != nil {
		return err
	}
	defer dir.Close()
	_, err = sinks.ServePages(conn, dir)
	return err
}

func (v *reception) set(round int) string { return filepath.Join(v.sets, strconv.Itoa(round)) }

// answer tells a source that has lost its connection how it ended.
func (v *reception) answer(conn net.Conn) {
	defer conn.Close()
	<-v.decided
	if migrate.Send(conn, v.outcome) != nil {
		return
	}
	if _, err := migrate.Expect(conn, migrate.Bye); err == nil || v.outcome.Op == migrate.Failed {
		v.settle.Do(func() { close(v.settled) })
	}
}

// receive does what the source says until there is a tree, or none.
func (v *reception) receive(ctx context.Context, control net.Conn) error {
	r, err := v.follow(ctx, control)
	v.outcome = migrate.Message{Op: migrate.Running}
	if r != nil && r.running {
		v.outcome.PID = r.root
	} else {
		if err == nil {
			err = errors.New("no tree came")
		}
		v.outcome = migrate.Message{Op: migrate.Failed, Cause: err.Error()}
	}
	close(v.decided)
	if told := migrate.Send(control, v.outcome); told == nil && v.outcome.Op == migrate.Running {
		_, told = migrate.Expect(control, migrate.Bye)
		if told == nil {
			v.settle.Do(func() { close(v.settled) })
		}
	}
	if v.ready {
		v.linger(ctx)
	}
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return r.afterwards(ctx)
}

// memoryOfOutcome is how long a source that has lost its connection is waited for.
const memoryOfOutcome = 5 * time.Minute

// linger waits until the source knows how it ended: it may be asking.
func (v *reception) linger(ctx context.Context) {
	select {
	case <-v.settled:
	case <-ctx.Done():
	case <-time.After(memoryOfOutcome):
		slog.Warn("receive: the source has not asked how the migration ended")
	}
}

// follow obeys the source. The restorer it returns, if any, has been used and has to be closed.
func (v *reception) follow(ctx context.Context, control net.Conn) (*restorer, error) {
	for {
		m, err := migrate.Receive(control)
		if err != nil {
			return nil, fmt.Errorf("the source has gone: %w", err)
		}
		switch m.Op {
		case migrate.Round:
			err = v.begin(m.Round)
			if err == nil {
				err = migrate.Send(control, migrate.Message{Op: migrate.OK})
			}
		case migrate.File:
			err = v.store(control, m)
		case migrate.Restore:
			return v.restore(ctx, control)
		default:
			err = fmt.Errorf("the source says %q, which it should not now", m.Op)
		}
		if err != nil {
			return nil, err
		}
	}
}

// maxRound bounds the chain of sets.
const maxRound = 1000

// begin makes the directory of another set.
func (v *reception) begin(round int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if round != v.round+1 || round > maxRound {
		return fmt.Errorf("round %d does not follow round %d", round, v.round)
	}
	if err := os.Mkdir(v.set(round), 0o700); err != nil {
		return err
	}
	if v.round > 0 {
		if err := os.Symlink("../"+strconv.Itoa(v.round), filepath.Join(v.set(round), "parent")); err != nil {
			return err
		}
	}
	v.round = round
	v.pages[round] = make(chan error, 1)
	return nil
}

// store receives a file of the newest set.
func (v *reception) store(control net.Conn, m migrate.Message) error {
	if err := image.CheckName(m.Name); err != nil {
		return err
	}
	if v.round == 0 || m.Size < 0 {
		return fmt.Errorf("%s has no place, or no size", m.Name)
	}
	f, err := os.OpenFile(filepath.Join(v.set(v.round), m.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, control, m.Size)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("receive %s: %w", m.Name, err)
	}
	return nil
}

// restore builds the tree up, and lets it run when the source says go.
func (v *reception) restore(ctx context.Context, control net.Conn) (*restorer, error) {
	for round := 1; round <= v.round; round++ {
		select {
		case err := <-v.pages[round]:
			if err != nil {
				return nil, fmt.Errorf("pages of round %d: %w", round, err)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	o := *v.o
	o.Verb, o.ImagesDir, o.ImagesDirFD = options.Restore, v.set(v.round), -1
	r, err := newRestorer(ctx, &o)
	if err != nil {
		return nil, err
	}
	defer r.close()
	r.confirm = func(*pipeline.Stage) error {
		v.ready = true
		if err := migrate.Send(control, migrate.Message{Op: migrate.Ready}); err != nil {
			return err
		}
		_, err := migrate.Expect(control, migrate.Go)
		if err != nil {
			err = fmt.Errorf("the source has not given its tree away: %w", err)
		}
		return err
	}
	return r, r.run(ctx)
}
