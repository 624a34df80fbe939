// Command criu saves process trees to image sets and brings them back, with the command line of criu 4.2.
//
// This package reads flags and configuration, opens the log, calls the library and says in one sentence what went wrong;
// nothing else. There is one file a verb.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"cryo/internal/dirty"
	"cryo/internal/guardian"
	"cryo/internal/log"
	"cryo/internal/options"
	"cryo/internal/rpc"
	"cryo/stages"

	"golang.org/x/sys/unix"
)

// start is what the log's time stamps count from.
var start = time.Now()

// gitID is set by the linker in builds that want to tell their commit; criu's clients then round the version up.
var gitID = ""

// version is the release of criu that this one speaks the language of.
const version = "4.2"

// verbs are what this program does. A verb that is not here has a capability that is not built, which
// [options.Options.Check] refuses by name.
var verbs = map[options.Verb]func(context.Context, *options.Options) error{
	options.Dump:         dump,
	options.PreDump:      stages.PreDump,
	options.Check:        check,
	options.PageServer:   pageServer,
	options.LazyPages:    lazyPages,
	options.Dedup:        stages.Dedup,
	options.Migrate:      stages.Migrate,
	options.Receive:      stages.Receive,
	options.Restore:      restore,
	options.Extract:      stages.Extract,
	options.Service:      service,
	options.CPUInfoDump:  cpuinfoDump,
	options.CPUInfoCheck: cpuinfoCheck,
}

// servers are verbs that only pass requests on: what must be allowed and where to be is a matter of each request.
var servers = map[options.Verb]func(context.Context, *options.Options) error{
	options.Swrk: swrk,
}

// memoryGoal is how much memory the runtime tries to do with: with what it does not count, less than 64 MiB. A goal of 40
// made the restore of 1,000 tasks, with 20 MiB in use, collect 60 times and take twice the processor time.
const memoryGoal = 48 << 20

func main() {
	guardian.Main(stages.GuardianKinds()...)
	stages.LazyMain()
	stages.PageServerMain()
	rpc.WorkerMain(serveServiceClient)
	dirty.KeeperMain()
	// Most runs are over before a first collection would be worth its time; large ones stay small.
	debug.SetGCPercent(800)
	debug.SetMemoryLimit(memoryGoal)
	os.Exit(run(os.Args[1:]))
}

// run does what a command line asks for and returns the exit status: 0, or 1 for every failure, as criu's.
func run(args []string) int {
	if len(args) == 0 {
		usage(os.Stdout)
		return 1
	}
	o, err := options.Parse(args)
	var wrong *options.UsageError
	switch {
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "criu: %v: see criu --help\n", err)
		return 1
	case err != nil:
		return fail(err)
	case o.Help:
		options.WriteHelp(os.Stdout)
		return 0
	case o.Version:
		printVersion()
		return 0
	}
	if err := do(o); err != nil {
		if o.Verbosity > log.Messages {
			fail(err)
		}
		return 1
	}
	return 0
}

// do prepares the process and runs the verb.
func do(o *options.Options) error {
	if !inBackground() && !again {
		for _, fd := range o.CloseFDs {
			unix.Close(fd) // one that is not open is closed enough
		}
	}
	ctx, ready := catchSignals()
	if err := o.Check(o.Verb); err != nil {
		return err
	}
	if o.Graph != "" {
		text, err := stages.Graph(o.Verb, o.Graph)
		fmt.Print(text)
		return err
	}
	var err error
	if startDir, err = os.Getwd(); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if serve := servers[o.Verb]; serve != nil {
		<-ready
		return serve(ctx, o)
	}
	return perform(ctx, o, func(ctx context.Context, o *options.Options) error {
		<-ready
		return verbs[o.Verb](ctx, o)
	})
}

// catchSignals has signals caught for as long as the process lives: an interrupt cancels ctx, and so the work, which takes
// back what it did. Images, logs and sockets may go to pipes whose reader leaves; that is an error of a write, not our
// death. SIGPIPE is caught and not ignored, because programs that we start would inherit that.
//
// The Go runtime starts two threads for it. Until ready is closed there is time for something else.
func catchSignals() (ctx context.Context, ready <-chan struct{}) {
	ctx, cancel := context.WithCancelCause(context.Background())
	caught := make(chan struct{})
	go func() {
		interrupt := make(chan os.Signal, 1)
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		if signals := interrupts(); len(signals) > 0 { // none would be all
			signal.Notify(interrupt, signals...)
		}
		close(caught)
		cancel(fmt.Errorf("%v signal received", <-interrupt))
	}()
	return ctx, caught
}

// perform does the work of a verb in its directory, and keeps its log.
func perform(ctx context.Context, o *options.Options, work func(context.Context, *options.Options) error) error {
	if err := privileges(o); err != nil {
		return err
	}
	if err := enterWorkDir(o); err != nil {
		return err
	}
	l, err := log.Open(log.Config{
		Dir: ".", File: o.LogFile, PerTask: o.LogPid, Verbosity: int(o.Verbosity), Start: start,
		Version:  fmt.Sprintf("%s (gitid %s)", version, orZero(gitID)),
		Continue: inBackground() || again,
	})
	if err != nil {
		return err
	}
	defer l.Close()
	err = work(ctx, o)
	if err != nil && (l.ToFile() || o.Client != nil) && !errors.Is(err, errReported) { // fail tells it on standard error
		cause, also := sentences(err)
		slog.Error(cause)
		for _, s := range also {
			slog.Error(s)
		}
	}
	return err
}

// interrupts are the signals that end the work, except those that we were started to ignore, as by nohup.
func interrupts() []os.Signal {
	var caught []os.Signal
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			caught = append(caught, s)
		}
	}
	return caught
}

// enterWorkDir makes the images directory absolute and goes to the work directory, where logs, pid files, statistics and
// action scripts have their place.
func enterWorkDir(o *options.Options) (err error) {
	work := o.Work()
	if o.ImagesDir != "-" {
		if o.ImagesDir, err = filepath.Abs(o.ImagesDir); err != nil {
			return fmt.Errorf("images directory: %w", err)
		}
	}
	abs, err := filepath.Abs(work)
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	if err := os.Chdir(abs); err != nil {
		return fmt.Errorf("work directory: %w: name an existing one with -D or -W", err)
	}
	o.WorkDir = abs
	return nil
}

// errReported marks a failure whose cause the user has seen already.
var errReported = errors.New("reported")

// fail says why in one sentence, the last one on standard error.
func fail(err error) int {
	if errors.Is(err, errReported) {
		return 1
	}
	cause, also := sentences(err)
	for _, s := range also {
		fmt.Fprintf(os.Stderr, "criu: also: %s\n", s)
	}
	fmt.Fprintf(os.Stderr, "criu: %s\n", cause)
	return 1
}

// sentences takes an error of several apart: what came first is the cause, the others followed from it.
func sentences(err error) (cause string, also []string) {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[0], lines[1:]
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}
