package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"cryo/internal/log"
	"cryo/internal/options"
	"cryo/internal/selfexec"
)

// Descriptors a page server of its own is started with, besides its log on 2.
const (
	pagesSocketFD  = 3 // listening, or connected to the client
	pagesImagesFD  = 4
	pagesOptionsFD = 5 // JSON
)

// pagesArgv0 tells an executable that it is started as a page server.
const pagesArgv0 = "criu-page-server"

var pagesAvailable atomic.Bool

// PageServerMain makes this process a page server, and does not return, if it was started as one by [StartPageServer]; else
// it does nothing. Whoever starts page servers calls it first thing in main, behind guardian.Main.
func PageServerMain() {
	pagesAvailable.Store(true)
	if !selfexec.Is(pagesArgv0) {
		return
	}
	selfexec.Become(pagesArgv0, pagesOptionsFD)
	if err := ownPageServer(); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

func ownPageServer() error {
	o := options.Default()
	f := os.NewFile(pagesOptionsFD, "options")
	if err := errors.Join(json.NewDecoder(f).Decode(o), f.Close()); err != nil {
		return err
	}
	slog.SetDefault(slog.New(log.NewHandler(os.Stderr, int(o.Verbosity), time.Now())))
	o.ImagesDirFD = pagesImagesFD
	if o.PageServerFD >= 0 {
		o.PageServerFD = pagesSocketFD
		return ServePages(context.Background(), o, nil)
	}
	l, err := net.FileListener(os.NewFile(pagesSocketFD, "page server"))
	if err != nil {
		return err
	}
	return ServePages(context.Background(), o, l)
}

// StartPageServer starts a process that does what [ServePages] does, and returns when a client may connect to it. The process
// is a child of this one. Its port is 0 if it serves the connection o.PageServerFD.
func StartPageServer(ctx context.Context, o *options.Options) (pid, port int, err error) {
	if err := o.Check(options.PageServer); err != nil {
		return 0, 0, err
	}
	if !pagesAvailable.Load() {
		return 0, 0, errors.New("page server: this program has no PageServerMain")
	}
	images, err := imagesDir(o)
	if err != nil {
		return 0, 0, err
	}
	if images == nil {
		return 0, 0, errors.New("a page server stores pages in a directory: -D - has none")
	}
	defer images.Close()
	socket, port, err := pagesSocket(ctx, o)
	if err != nil {
		return 0, 0, err
	}
	defer socket.Close()
	text, err := optionsFile(o)
	if err != nil {
		return 0, 0, err
	}
	defer text.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer null.Close()
	errs := os.Stderr
	if f := log.File(slog.Default()); f != nil {
		errs = f
	}
	files := []uintptr{null.Fd(), null.Fd(), errs.Fd(), socket.Fd(), images.Fd(), text.Fd()}
	pid, err = selfexec.Process{Name: pagesArgv0, Dir: o.Work(), Env: os.Environ(), Files: files}.Start(selfexec.Path)
	if err != nil {
		return 0, 0, fmt.Errorf("start the page server: %w", err)
	}
	return pid, port, nil
}

// pagesSocket is what a page server takes its client from: the connection of o, or a socket that listens on the port.
func pagesSocket(ctx context.Context, o *options.Options) (socket *os.File, port int, err error) {
	if o.PageServerFD >= 0 {
		socket, err = dupFD(o.PageServerFD, "page server socket")
		return socket, 0, err
	}
	l, err := ListenPages(ctx, o)
	if err != nil {
		return nil, 0, err
	}
	defer l.Close()
	if socket, err = ListenerFile(l); err != nil {
		return nil, 0, err
	}
	return socket, l.Addr().(*net.TCPAddr).Port, nil
}
