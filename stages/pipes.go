package stages

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"cryo/internal/options"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// openPipes are the pipes of a piped set: the standard one, or those of the option.
func openPipes(o *options.Options, std *os.File, remedy string) ([]*os.File, error) {
	if len(o.ShardFDs) == 0 {
		if isTerminal(std) {
			return nil, fmt.Errorf("%s is a terminal: %s", std.Name(), remedy)
		}
		widen(std)
		return []*os.File{std}, nil
	}
	if len(o.ShardFDs) > sinks.MaxShards {
		return nil, fmt.Errorf("--shard-fds: %d descriptors: at most %d", len(o.ShardFDs), sinks.MaxShards)
	}
	var pipes []*os.File
	for _, fd := range o.ShardFDs {
		// What this process starts must not keep a pipe open.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("--shard-fds: descriptor %d: %w", fd, err)
		}
		f := os.NewFile(uintptr(fd), fmt.Sprintf("shard (descriptor %d)", fd))
		widen(f)
		pipes = append(pipes, f)
	}
	return pipes, nil
}

func writers(pipes []*os.File) (w []io.Writer) {
	for _, f := range pipes {
		w = append(w, f)
	}
	return w
}

// readers read pipes until ctx ends.
func readers(ctx context.Context, pipes []*os.File) (r []io.Reader) {
	for _, f := range pipes {
		r = append(r, waitingReader{ctx, f})
	}
	return r
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

// hideShards keeps the pipes of a set from what this process starts, before it starts anything.
func hideShards(o *options.Options) {
	for _, fd := range o.ShardFDs {
		unix.CloseOnExec(fd)
	}
}

// widen makes room in a pipe for a frame of a stream, so that both sides wait for each other less often. It is the most that
// anybody may ask for (fs.pipe-max-size, as it is by default); what is no pipe stays as it is.
func widen(f *os.File) { unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 1<<20) }

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
