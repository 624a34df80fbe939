package main

import (
	"context"
	"net"
	"os"

	"cryo/internal/options"
	"cryo/stages"
)

// pageServer receives the pages of one dump, in the background with --daemon.
func pageServer(ctx context.Context, o *options.Options) error {
	if o.PageServerFD >= 0 {
		if err := ready(ctx, o, os.Getpid()); err != nil {
			return err
		}
		return stages.ServePages(ctx, o, nil)
	}
	if inBackground() {
		l, err := net.FileListener(handedOver())
		if err != nil {
			return err
		}
		return stages.ServePages(ctx, o, l)
	}
	l, err := stages.ListenPages(ctx, o)
	if err != nil {
		return err
	}
	if !o.Detach {
		if err := ready(ctx, o, os.Getpid()); err != nil {
			return err
		}
		return stages.ServePages(ctx, o, l)
	}
	defer l.Close()
	socket, err := stages.ListenerFile(l)
	if err != nil {
		return err
	}
	defer socket.Close()
	pid, err := background(socket)
	if err != nil {
		return err
	}
	return ready(ctx, o, pid)
}
