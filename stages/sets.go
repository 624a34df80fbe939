package stages

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/internal/pagexfer"
	"cryo/sinks"

	"golang.org/x/sys/unix"
)

// piped is the images directory that stands for standard output or input.
const piped = "-"

// imagesDir opens the images directory of o, which a front end may have opened already; nil when the set is piped.
func imagesDir(o *options.Options) (*os.File, error) {
	switch {
	case o.ImagesDirFD >= 0:
		return dupFD(o.ImagesDirFD, fmt.Sprintf("images directory (descriptor %d)", o.ImagesDirFD))
	case o.ImagesDir == piped:
		return nil, nil
	}
	dir, err := os.OpenFile(o.ImagesDir, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("images directory: %w: name an existing one with -D", err)
	}
	return dir, nil
}

// openSink opens where the set of a dump goes to. dir is the directory of it, nil for none, and stays the caller's.
func openSink(o *options.Options, dir *os.File) (sinks.Sink, error) {
	to, err := openPlainSink(o, dir)
	if err != nil {
		return nil, err
	}
	return packed(o, to)
}

// packed is a sink that encrypts and compresses on the way to another, as o says.
func packed(o *options.Options, to sinks.Sink) (sinks.Sink, error) {
	key, err := keyOf(o)
	if err == nil && key != nil && sinks.Server(to) != nil {
		err = errors.New("--key-file: pages for a page server are stored as they are; --tls protects them on their way")
	}
	if err == nil && o.CompressAcceleration > 1 && codecs[o.Compress] != image.LZ4 {
		err = errors.New("--compress-acceleration is a choice of LZ4: give it with --compress=lz4")
	}
	if err == nil && (key != nil || o.Compress != "") {
		if key != nil {
			to = sinks.Encrypt(to, key)
		}
		var packed *sinks.Compressed
		if packed, err = sinks.Compress(to, codecs[o.Compress], int(min(o.CompressRegion, image.MaxBlock+1))); err == nil {
			packed.Acceleration = o.CompressAcceleration
			return packed, nil
		}
		err = fmt.Errorf("--compress-region: %w", err)
	}
	if err != nil {
		to.Close()
		return nil, err
	}
	return to, nil
}

// keyOf is the key of o, nil where it has none. A descriptor it comes from is read once.
func keyOf(o *options.Options) (image.Key, error) {
	if o.Key == nil && o.KeyFile != "" {
		key, err := image.ReadKey(o.KeyFile)
		if err != nil {
			return nil, err
		}
		o.Key = key
	}
	return o.Key, nil
}

var codecs = map[options.Format]image.Codec{"": image.Plain, "lz4": image.LZ4, "zstd": image.Zstd}

// openPlainSink opens where bytes go as they are.
func openPlainSink(o *options.Options, dir *os.File) (sinks.Sink, error) {
	switch {
	case o.Checksum && (o.PageServer || o.Stream || dir == nil):
		return nil, errors.New("--checksum: a set has checksums where all of it is put into one directory; a stream has its own")
	case dir == nil:
		return pipeOut(o)
	case len(o.ShardFDs) > 0:
		return nil, errShards
	case o.Index != "":
		return nil, errors.New("--index: it is for a set that is piped (-D -); one in a directory has all itself")
	case o.Stream && o.PageServer:
		return nil, errors.New("--stream and --page-server exclude each other: the pages can go one way only")
	case o.Stream:
		return sinks.NewStreamer(dirPath(dir))
	}
	own, err := dup(dir)
	if err != nil {
		return nil, err
	}
	meta, err := sinks.NewDirFile(own, sinks.DirOptions{Sync: o.Sync, Checksum: o.Checksum, Parent: o.PrevImagesDir})
	if err != nil || !o.PageServer {
		return meta, err
	}
	conn, borrowed, err := dialPageServer(o)
	if err != nil {
		meta.Close()
		return nil, err
	}
	return overServer(o, meta, conn, borrowed), nil
}

// overServer sends pages to a page server. One that is to be built on keeps what it needs for that.
func overServer(o *options.Options, meta *sinks.Dir, conn net.Conn, borrowed bool) *sinks.PageServer {
	s := sinks.NewPageServer(meta, conn, borrowed)
	if o.TrackMem {
		s.KeepIndex()
	}
	return s
}

// openSource opens where the set of a restore comes from, and compares it with its checksums.
func openSource(ctx context.Context, o *options.Options, dir *os.File) (image.Source, error) {
	if dir != nil && !o.Stream {
		own, err := dup(dir)
		if err != nil {
			return nil, err
		}
		set := image.NewDir(own)
		defer set.Close()
		if err := sinks.Verify(set, o.Checksum); err != nil {
			return nil, err
		}
	}
	return openVerified(ctx, o, dir)
}

// openVerified is openSource for a set that has been compared with its checksums.
func openVerified(ctx context.Context, o *options.Options, dir *os.File) (image.Source, error) {
	raw, err := openRaw(ctx, o, dir)
	if err != nil {
		return nil, err
	}
	src, err := unseal(o, raw)
	if err == nil {
		src, err = image.Expand(src)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return src, nil
}

// openRaw opens a set as it is stored. One that is piped is read until ctx ends.
func openRaw(ctx context.Context, o *options.Options, dir *os.File) (image.Source, error) {
	switch {
	case dir == nil:
		pipes, err := openPipes(o, os.Stdin, "pipe a dump with -D - into this restore")
		if err != nil {
			return nil, err
		}
		return pipeIn(ctx, o, pipes)
	case len(o.ShardFDs) > 0:
		return nil, errShards
	case o.Stream:
		return sinks.OpenStreamer(dirPath(dir))
	}
	own, err := dup(dir)
	if err != nil {
		return nil, err
	}
	return image.NewDir(own), nil
}

var errShards = errors.New("--shard-fds: they are for a set that is piped: -D -")

// unseal makes a readable set of one that may be encrypted.
func unseal(o *options.Options, src image.Source) (image.Source, error) {
	key, err := keyOf(o)
	if err != nil {
		return nil, err
	}
	if key != nil {
		return image.Unseal(src, key)
	}
	if sealed, err := image.Sealed(src); sealed || err != nil {
		if err == nil {
			err = fmt.Errorf("%s is encrypted: name the file with its key by --key-file", src)
		}
		return nil, err
	}
	return src, nil
}

// dup is another descriptor of an open directory, for whoever closes it.
func dup(dir *os.File) (*os.File, error) { return dupFD(int(dir.Fd()), dir.Name()) }

func dupFD(fd int, name string) (*os.File, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, os.NewSyscallError("dup", err))
	}
	return os.NewFile(uintptr(again), name), nil
}

// dirPath names an open directory, whatever happened to its name since.
func dirPath(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", dir.Fd()) }

// pipeOut makes a sink of standard output, which nothing else may write to.
func pipeOut(o *options.Options) (sinks.Sink, error) {
	switch {
	case o.Stream, o.PageServer:
		return nil, errors.New("-D - sends everything through the pipe: leave --stream and --page-server out")
	case o.LogFile == "-":
		return nil, errors.New("-D - and -o - both want standard output: log to a file")
	case o.DisplayStats:
		return nil, errors.New("-D - needs standard output for the images: leave --display-stats out")
	}
	pipes, err := openPipes(o, os.Stdout, "pipe this dump into criu restore -D -")
	if err != nil {
		return nil, err
	}
	opt := sinks.StreamOptions{}
	if o.PrevImagesDir != "" {
		before, err := openBefore(o)
		if err != nil {
			return nil, err
		}
		opt.Parent = image.Packed(before)
	}
	if o.Index != "" {
		dir, err := os.OpenFile(filepath.Join(o.Work(), o.Index), unix.O_DIRECTORY, 0)
		if err == nil {
			opt.Index, err = sinks.NewDirFile(dir, sinks.DirOptions{Sync: o.Sync})
		}
		if err != nil {
			return nil, fmt.Errorf("--index: %w: name an existing directory, relative to the work directory", err)
		}
	}
	return sinks.NewStream(opt, writers(pipes)...), nil
}

// pipeIn reads a set, or several that build on each other, until the other end closes: on the same machine the dump still holds
// the ids of its tasks when it has sent the last byte.
func pipeIn(ctx context.Context, o *options.Options, pipes []*os.File) (image.Source, error) {
	var before image.Source
	if o.PrevImagesDir != "" {
		var err error
		if before, err = openBefore(o); err != nil {
			return nil, err
		}
	}
	return sinks.ReadStream(before, readers(ctx, pipes)...)
}

// openBefore opens the set that a piped one builds on.
func openBefore(o *options.Options) (image.Source, error) {
	set, err := image.OpenDir(filepath.Join(o.Work(), o.PrevImagesDir))
	if err != nil {
		return nil, fmt.Errorf("--prev-images-dir: %w", err)
	}
	return set, nil
}

// dialPageServer connects to the page server of o; borrowed says that the socket was handed to us.
func dialPageServer(o *options.Options) (conn net.Conn, borrowed bool, err error) {
	switch {
	case o.PageServerFD >= 0:
		borrowed = true
		conn, err = socketOf(o.PageServerFD)
	case o.Port == 0:
		err = errors.New("--page-server needs --port, or --ps-socket")
	default:
		conn, err = dialPatiently(net.JoinHostPort(o.Address, strconv.Itoa(o.Port)), serverPatience)
		if err != nil {
			err = fmt.Errorf("page server: %w: is criu page-server running there?", err)
		}
	}
	if err != nil || !o.TLS {
		return conn, borrowed, err
	}
	safe, err := tlsOf(o).Client(context.Background(), conn, o.Address)
	if err != nil {
		conn.Close()
		return nil, borrowed, fmt.Errorf("page server: %w", err)
	}
	return safe, borrowed, nil
}

// serverPatience is how long a server that is started together with its client may take until it listens.
const serverPatience = time.Second

// dialPatiently connects to a server that may be about to start.
func dialPatiently(address string, patience time.Duration) (net.Conn, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(deadline) {
			return conn, err
		}
	}
}

// tlsOf is how o wants connections to page servers protected.
func tlsOf(o *options.Options) pagexfer.TLS {
	return pagexfer.TLS{CACert: o.TLSCACert, CACRL: o.TLSCACRL, Cert: o.TLSCert, Key: o.TLSKey, AnyName: o.TLSNoCNVerify}
}

// socketOf is the connection behind a descriptor that a caller handed to us. The descriptor itself stays open.
func socketOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "page server socket")
	if f == nil {
		return nil, fmt.Errorf("--ps-socket %d is no descriptor", fd)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("--ps-socket %d: %w", fd, err)
	}
	return conn, nil
}
