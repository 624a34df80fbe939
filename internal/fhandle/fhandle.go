// Package fhandle finds files by their handles, without a path (open_by_handle_at(2), Linux 2.6.39): what inotify and
// fanotify remember of the files they watch. Handles are in fdinfo (Linux 3.8) and in fh_entry messages of files.img.
package fhandle

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// words is how many 64-bit words the handle has in an image, at most and at least: as many as the kernel's largest.
const words = 16

// Parse makes the message of a handle as fdinfo has it: its length, its type, its bytes in hex.
func Parse(size, typ uint32, text string) (*fh.FhEntry, error) {
	var b [8 * words]byte
	if size > uint32(len(b)) || len(text) > 2*len(b) {
		return nil, fmt.Errorf("a file handle of %d bytes", size)
	}
	if _, err := hex.Decode(b[:], []byte(text)); err != nil {
		return nil, fmt.Errorf("file handle %q: %w", text, err)
	}
	e := &fh.FhEntry{Bytes: proto.Uint32(size), Type: proto.Uint32(typ)}
	for i := 0; i < len(b); i += 8 {
		e.Handle = append(e.Handle, binary.NativeEndian.Uint64(b[i:]))
	}
	return e, nil
}

// handle is the kernel's form of a message.
func handle(e *fh.FhEntry) (unix.FileHandle, error) {
	var b []byte
	for _, w := range e.GetHandle() {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	if len(b) > 8*words || e.GetBytes() == 0 || int(e.GetBytes()) > len(b) {
		return unix.FileHandle{}, fmt.Errorf("a file handle of %d bytes, in %d", e.GetBytes(), len(b))
	}
	return unix.NewFileHandle(int32(e.GetType()), b[:e.GetBytes()]), nil
}

// ErrNotFound says that no mount gives access to the file.
var ErrNotFound = errors.New("no file with this handle can be found")

// Open opens the file with a handle, by any of the mounts of its filesystem, as a mere reference (O_PATH). root is put
// before the mount points; dev is the filesystem as the kernel numbers it, ino the file's inode number, which has to fit.
func Open(mounts []*mountinfo.Info, root string, dev uint32, ino uint64, e *fh.FhEntry) (int, error) {
	h, err := handle(e)
	if err != nil {
		return -1, err
	}
	for _, m := range mounts {
		if KernelDev(m.Major, m.Minor) != dev || m.FSType == "autofs" {
			continue
		}
		mnt, err := unix.Open(root+m.Mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		fd, err := unix.OpenByHandleAt(mnt, h, unix.O_PATH|unix.O_CLOEXEC)
		unix.Close(mnt)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Ino == ino {
			return fd, nil
		}
		unix.Close(fd) // of what is mounted above
	}
	return -1, ErrNotFound
}

// KernelDev is a device number as the kernel has it inside, and in fdinfo.
func KernelDev(major, minor int) uint32 { return uint32(major)<<20 | uint32(minor) }

// StatDev is the same for a number of stat(2).
func StatDev(dev uint64) uint32 { return KernelDev(int(unix.Major(dev)), int(unix.Minor(dev))) }

// Mounts reads a mountinfo file: what is mounted in a mount namespace, as far as the reader of the file sees it.
func Mounts(name string) ([]*mountinfo.Info, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}
