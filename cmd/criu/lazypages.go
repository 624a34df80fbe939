package main

import (
	"context"
	"errors"
	"net"
	"os"

	"cryo/internal/options"
	"cryo/stages"
)

// lazyPages serves the memory of one lazy restore, in the background with --daemon.
func lazyPages(ctx context.Context, o *options.Options) error {
	var l *net.UnixListener
	if inBackground() {
		handed, err := net.FileListener(handedOver())
		if err != nil {
			return err
		}
		l = handed.(*net.UnixListener)
		l.SetUnlinkOnClose(true)
	} else {
		var err error
		if l, err = stages.ListenLazyPages(o); err != nil {
			return err
		}
	}
	if o.Detach && !inBackground() {
		socket, err := l.File()
		if err != nil {
			return err
		}
		pid, err := background(socket)
		if err = errors.Join(err, socket.Close()); err != nil {
			return errors.Join(err, l.Close())
		}
		l.SetUnlinkOnClose(false) // it is the other's now
		l.Close()
		return ready(ctx, o, pid)
	}
	if !inBackground() {
		if err := ready(ctx, o, os.Getpid()); err != nil {
			return err
		}
	}
	conn, err := stages.AcceptLazyRestore(ctx, l)
	if err != nil {
		return err
	}
	return stages.ServeLazyPages(ctx, o, conn)
}
