package stages

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"cryo/internal/image"
	"cryo/internal/lazy"
	"cryo/internal/options"
	"cryo/sinks"
)

// ListenPages opens the socket that [ServePages] takes its client from. Without o.Port the kernel chooses one.
func ListenPages(ctx context.Context, o *options.Options) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(o.Address, strconv.Itoa(o.Port)))
	if err != nil {
		return nil, fmt.Errorf("page server: %w", err)
	}
	slog.Info(fmt.Sprintf("Starting page server on %v", l.Addr()))
	return l, nil
}

// ServePages receives the pages of one dump into the images directory of o, or with o.LazyPages sends those that are there
// to a lazy restore. Its client is the connection o.PageServerFD, or the first one of l, which it closes then.
func ServePages(ctx context.Context, o *options.Options, l net.Listener) error {
	conn, err := acceptPages(ctx, o, l)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	images, err := imagesDir(o)
	if err != nil {
		return err
	}
	if images == nil {
		return fmt.Errorf("a page server stores pages in a directory: -D - has none")
	}
	if o.LazyPages {
		return serveLate(conn, images)
	}
	dir, err := sinks.NewDirFile(images, sinks.DirOptions{Sync: o.Sync, PagesOnly: true, FirstPages: sinks.ServerPagesBase,
		Parent: o.PrevImagesDir})
	if err != nil {
		return err
	}
	defer dir.Close()
	n, err := sinks.ServePages(conn, dir)
	slog.Info("page server is done", "bytes", n, "client", conn.RemoteAddr())
	if err == nil && o.AutoDedup {
		err = giveBack(images, sinks.Dedup)
	}
	return err
}

// serveLate sends the pages of an image set to who restores it elsewhere, as its tasks want them.
func serveLate(conn net.Conn, images *os.File) error {
	defer images.Close()
	set, err := image.Expand(image.NewDir(images))
	if err != nil {
		return err
	}
	n, err := lazy.ServeGets(conn, func(pid int) (lazy.Pages, error) { return lazy.OpenLocal(set, pid) })
	slog.Info("page server is done", "pages", n, "client", conn.RemoteAddr())
	return err
}

// acceptPages is the connection of the one client, protected if o says so.
func acceptPages(ctx context.Context, o *options.Options, l net.Listener) (net.Conn, error) {
	conn, err := pageClient(ctx, o, l)
	if err != nil || !o.TLS {
		return conn, err
	}
	safe, err := tlsOf(o).Server(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("page server: %w", err)
	}
	return safe, nil // its end says goodbye, and ends the connection under it
}

// pageClient is the connection of the one client.
func pageClient(ctx context.Context, o *options.Options, l net.Listener) (net.Conn, error) {
	if o.PageServerFD >= 0 {
		return socketOf(o.PageServerFD)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	conn, err := l.Accept()
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("page server: ended before a client came: %w", ctx.Err())
		}
		return nil, fmt.Errorf("page server: %w", err)
	}
	slog.Info("page server: accepted", "client", conn.RemoteAddr())
	return conn, nil
}

// ListenerFile is the descriptor of a listening socket, to be handed to another process.
func ListenerFile(l net.Listener) (*os.File, error) {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("page server: %v cannot be handed on", l.Addr())
	}
	return tcp.File()
}
