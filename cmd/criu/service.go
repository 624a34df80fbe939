package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"cryo/internal/log"
	"cryo/internal/options"
	"cryo/internal/rpc"
)

// service serves everybody who connects to a socket, in the background with --daemon.
func service(ctx context.Context, o *options.Options) error {
	if inBackground() {
		l, err := net.FileListener(handedOver())
		if err != nil {
			return err
		}
		l.(*net.UnixListener).SetUnlinkOnClose(true)
		return new(rpc.Service).Serve(ctx, l.(*net.UnixListener))
	}
	path := o.Address
	if path == "" {
		path = rpc.DefaultAddress
	}
	l, err := rpc.Listen(path)
	if err != nil {
		return err
	}
	defer l.Close()
	if !o.Detach {
		if err := ready(ctx, o, os.Getpid()); err != nil {
			return err
		}
		return new(rpc.Service).Serve(ctx, l)
	}
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	pid, err := background(socket)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // it is the other's now
	return ready(ctx, o, pid)
}

// serveServiceClient serves one client of the service.
func serveServiceClient(client *os.File) error {
	ctx, stop := signal.NotifyContext(context.Background(), interrupts()...)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	slog.SetDefault(slog.New(log.NewHandler(os.Stderr, log.Infos, start))) // the service's log, until a request has its own
	logger := slog.Default()
	o := options.Default()
	o.Unprivileged = os.Geteuid() != 0
	var err error
	if startDir, err = os.Getwd(); err == nil {
		err = serveClient(ctx, o, client, rpc.Client{})
	}
	if err != nil {
		logger.Info("a request failed", "why", err)
	}
	return err
}
