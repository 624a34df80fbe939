package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clean checks the path of a group, as an image names it, and returns it without slashes at its ends: empty for the root.
func Clean(name string) (string, error) {
	name = strings.Trim(name, "/")
	if name == "" {
		return "", nil
	}
	if path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsAny(name, "\x00\n") {
		return "", fmt.Errorf("%.100q is no path of a control group", name)
	}
	return name, nil
}

// CheckProperty refuses names that are no file of a group.
func CheckProperty(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%.100q is no property of a control group", name)
	}
	return nil
}

// Open opens what lies below a directory of a hierarchy; name is relative to it, empty for itself. No link and no mount is
// followed (openat2, Linux 5.6).
func Open(dir *os.File, name string, flags int) (*os.File, error) {
	name = strings.Trim(name, "/")
	full := path.Join(dir.Name(), name)
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// maxProperty is more than any property has; a page is what most may have.
const maxProperty = 1 << 20

// ReadProperty reads a property of a group, without the end of its last line.
func ReadProperty(dir *os.File, name string) (string, error) {
	f, err := Open(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(f *os.File) (string, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxProperty))
	return strings.TrimSuffix(string(b), "\n"), err
}

// WriteProperty writes to a property of a group.
func WriteProperty(dir *os.File, name, value string) error {
	f, err := Open(dir, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// Remove removes an empty group. The kernel may still be taking leave of tasks that have been killed: that is waited for.
func Remove(ctx context.Context, parent *os.File, name string) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return &os.PathError{Op: "rmdir", Path: path.Join(parent.Name(), name), Err: err}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("control group %s stays: there are tasks or groups in it", path.Join(parent.Name(), name))
		case <-time.After(pause):
		}
	}
}
