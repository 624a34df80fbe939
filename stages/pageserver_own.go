package stages

import (
	"context"
	"errors"
	"net"
	"os"

	"cryo/internal/options"
)

var ownPageServer = ownServer{name: "criu-page-server", serve: func(o *options.Options, socket *os.File) error {
	if o.PageServerFD >= 0 {
		o.PageServerFD = ownSocketFD
		return ServePages(context.Background(), o, nil)
	}
	l, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	return ServePages(context.Background(), o, l)
}}

// PageServerMain makes this process a page server, and does not return, if it was started as one by [StartPageServer]; else
// it does nothing. Whoever starts page servers calls it first thing in main, behind guardian.Main.
func PageServerMain() { ownPageServer.main() }

// StartPageServer starts a process that does what [ServePages] does, and returns when a client may connect to it. The process
// is a child of this one. Its port is 0 if it serves the connection o.PageServerFD.
func StartPageServer(ctx context.Context, o *options.Options) (pid, port int, err error) {
	if err := o.Check(options.PageServer); err != nil {
		return 0, 0, err
	}
	if !ownPageServer.available.Load() {
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
	pid, err = ownPageServer.start(o, socket, images, logOrStderr())
	return pid, port, err
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
