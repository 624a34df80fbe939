package stages

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"cryo/internal/log"
	"cryo/internal/options"
	"cryo/internal/selfexec"

	"golang.org/x/sys/unix"
)

// ownServer is a server that this executable is once more, for a run that brings its server with it.
type ownServer struct {
	name      string // argv[0]
	serve     func(o *options.Options, socket *os.File) error
	available atomic.Bool // the program can be one
}

// Descriptors such a server is started with, besides its log on 2.
const (
	ownSocketFD  = 3
	ownImagesFD  = 4
	ownOptionsFD = 5 // JSON; a key may be among them, so it is no argument
)

// main makes this process the server, and does not return, if it was started as one; else it does nothing.
func (s *ownServer) main() {
	s.available.Store(true)
	if !selfexec.Is(s.name) {
		return
	}
	selfexec.Become(s.name, ownOptionsFD)
	o := options.Default()
	f := os.NewFile(ownOptionsFD, "options")
	err := errors.Join(json.NewDecoder(f).Decode(o), f.Close())
	if err == nil {
		slog.SetDefault(slog.New(log.NewHandler(os.Stderr, int(o.Verbosity), time.Now())))
		o.ImagesDirFD = ownImagesFD
		err = s.serve(o, os.NewFile(ownSocketFD, "socket"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// start starts the server, a child of this process. It says what it has to say to words.
func (s *ownServer) start(o *options.Options, socket, images, words *os.File) (pid int, err error) {
	text, err := optionsFile(o)
	if err != nil {
		return 0, err
	}
	defer text.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), words.Fd(), socket.Fd(), images.Fd(), text.Fd()}
	pid, err = selfexec.Process{Name: s.name, Dir: o.Work(), Env: os.Environ(), Files: files}.Start(selfexec.Path)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", s.name, err)
	}
	return pid, nil
}

// logOrStderr is where a server that outlives the run says what it has to say: nobody is to wait for its end because it has
// our standard error.
func logOrStderr() *os.File {
	if f := log.File(slog.Default()); f != nil {
		return f
	}
	return os.Stderr
}

// optionsFile is options in a file that has no name.
func optionsFile(o *options.Options) (*os.File, error) {
	if _, err := keyOf(o); err != nil { // a descriptor it comes from is not handed on
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("options", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "options")
	if _, err := f.WriteAt(text, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
