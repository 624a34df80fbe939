package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"cryo/internal/options"
	"cryo/internal/rpc"
	"cryo/stages"

	"golang.org/x/sys/unix"
)

// rpcVerbs are what requests of RPC clients ask for.
var rpcVerbs = map[options.Verb]func(context.Context, *options.Options) error{
	options.Dump:         stages.Dump,
	options.PreDump:      stages.PreDump,
	options.Restore:      restoreTree,
	options.Check:        checkKernel,
	options.CPUInfoDump:  cpuinfoDump,
	options.CPUInfoCheck: cpuinfoCheck,
}

// swrk serves the one client that has started us, on a socket it gave to us.
func swrk(ctx context.Context, o *options.Options) error {
	return serveClient(ctx, o, os.NewFile(uintptr(o.SwrkFD), "client"), rpc.Client{Worker: true})
}

// serveClient serves the client at the other end of a socket. What goes wrong the client gets to know, and the log.
func serveClient(ctx context.Context, base *options.Options, socket *os.File, who rpc.Client) error {
	if socket == nil {
		return fmt.Errorf("%d is no descriptor", base.SwrkFD)
	}
	conn, err := rpc.NewConn(socket)
	if err != nil {
		return err
	}
	if err := conn.KeepOpen(false); err != nil {
		return err
	}
	beforeAgain = func() error {
		runtime.LockOSThread() // capabilities are the thread's
		if base.Unprivileged {
			rpc.RaiseAmbient()
		}
		return conn.KeepOpen(true)
	}
	s := &rpc.Server{
		Client: who, Base: base, Version: version, GitID: gitID, Become: becomeLogged,
		Run: func(ctx context.Context, o *options.Options) error {
			return request(ctx, o, rpcVerbs[o.Verb])
		},
		StartPages: func(ctx context.Context, o *options.Options) (pid, port int, err error) {
			err = request(ctx, o, func(ctx context.Context, o *options.Options) error {
				if pid, port, err = stages.StartPageServer(ctx, o); err != nil {
					return err
				}
				return ready(ctx, o, pid)
			})
			return pid, port, err
		},
	}
	if err := s.Serve(ctx, conn); err != nil {
		return fmt.Errorf("%w: %w", errReported, err)
	}
	return nil
}

// request does what one request asks for, beginning where the program was started.
func request(ctx context.Context, o *options.Options, work func(context.Context, *options.Options) error) error {
	if err := os.Chdir(startDir); err != nil {
		return err
	}
	err := perform(ctx, o, func(ctx context.Context, o *options.Options) error {
		if err := o.Check(o.Verb); err != nil { // drivers look for the cause in the log
			return err
		}
		return work(ctx, o)
	})
	again = false // the next request begins a log of its own
	return err
}

// becomeLogged makes this process the command that is to be the parent of the restored tree. What it prints goes to the log,
// as the client does not share its terminal with it.
func becomeLogged(o *options.Options) error {
	if o.LogFile != "" && o.LogFile != "-" {
		f, err := os.OpenFile(o.LogFile, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		for fd := 1; fd <= 2; fd++ {
			if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
				return os.NewSyscallError("dup3", err)
			}
		}
	}
	return become(o)
}
