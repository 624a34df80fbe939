package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"cryo/internal/options"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// Extract puts a set that a dump with -D - has piped into the directory of images of o, from standard input, and reads nothing
// that follows it. A set that builds on another finds that by o.PrevImagesDir.
func Extract(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Extract); err != nil {
		return err
	}
	images, err := imagesDir(o)
	switch {
	case err != nil:
		return err
	case images == nil:
		return errors.New("extract: name the directory the set goes to with -D")
	}
	pipes, err := openPipes(o, os.Stdin, "pipe a dump with -D - into this")
	if err != nil {
		images.Close()
		return err
	}
	dir, err := sinks.NewDirFile(images, sinks.DirOptions{Sync: o.Sync, Parent: o.PrevImagesDir})
	if err != nil {
		return err
	}
	defer dir.Close()
	var from []io.Reader
	for _, f := range pipes {
		from = append(from, waitingReader{ctx, f})
	}
	err = sinks.Extract(dir, from...)
	if err == io.EOF {
		return fmt.Errorf("extract: nothing came on %s", pipes[0].Name())
	}
	return err
}

// waitingReader reads a descriptor that others may have too, so that it can neither be closed nor be made non-blocking to end
// a read: it waits first, and looks now and then whether it is still to.
type waitingReader struct {
	ctx context.Context
	f   *os.File
}

func (r waitingReader) Read(b []byte) (int, error) {
	const look = 200 * time.Millisecond
	for {
		fds := []unix.PollFd{{Fd: int32(r.f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(look/time.Millisecond))
		switch {
		case r.ctx.Err() != nil:
			return 0, context.Cause(r.ctx)
		case err != nil && err != unix.EINTR:
			return 0, os.NewSyscallError("poll", err)
		case n > 0:
			return r.f.Read(b)
		}
	}
}
