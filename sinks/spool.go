package sinks

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// spool is a file of a stream, kept so that it can be read more than once: in the heap while it is small, and in
// anonymous memory outside of it when it grows.
type spool struct {
	name  string
	small []byte
	file  *os.File // nil: small has it all
	size  int64
}

// spoolSmall is how much of a file stays in the heap. A set has a few files a task, most of them far smaller, and
// every memory file costs a descriptor.
const spoolSmall = 64 << 10

// Write appends b.
func (f *spool) Write(b []byte) (int, error) {
	if f.file == nil && len(f.small)+len(b) > spoolSmall {
		if err := f.grow(); err != nil {
			return 0, err
		}
	}
	if f.file == nil {
		f.small = append(f.small, b...)
		f.size += int64(len(b))
		return len(b), nil
	}
	n, err := f.file.Write(b)
	f.size += int64(n)
	return n, err
}

// grow moves the spool out of the heap.
func (f *spool) grow() error {
	fd, err := unix.MemfdCreate(f.name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		// MFD_NOEXEC_SEAL is there since Linux 6.3.
		fd, err = unix.MemfdCreate(f.name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("make memory for %s of the stream: %w", f.name, err)
	}
	f.file = os.NewFile(uintptr(fd), f.name)
	_, err = f.file.Write(f.small)
	f.small = nil
	return err
}

// reader is one view of a spool; closing it leaves the spool.
type reader struct{ io.Reader }

func (reader) Close() error { return nil }

// open makes a reader of the whole; fs.ErrNotExist for a nil spool, which stands for a file that is not there.
func (f *spool) open(set, name string) (io.ReadCloser, error) {
	switch {
	case f == nil:
		return nil, &fs.PathError{Op: "open", Path: set + "/" + name, Err: fs.ErrNotExist}
	case f.file == nil:
		return reader{bytes.NewReader(f.small)}, nil
	}
	return reader{io.NewSectionReader(f.file, 0, f.size)}, nil
}

// pages makes a pages file of it, which whoever gets it closes.
func (f *spool) pages(set, name string) (*image.Pages, error) {
	if f == nil {
		_, err := f.open(set, name)
		return nil, err
	}
	if f.file == nil {
		if err := f.grow(); err != nil {
			return nil, err
		}
	}
	fd, err := unix.FcntlInt(f.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &image.Pages{File: os.NewFile(uintptr(fd), f.name), Size: f.size, Passing: true}, nil
}

// Close says that all has been written.
func (f *spool) Close() error { return nil }

// free gives the memory back.
func (f *spool) free() {
	if f != nil && f.file != nil {
		f.file.Close()
	}
}
