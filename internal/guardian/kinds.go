package guardian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Record is an undo step as data: what it exports is sent as JSON. It has a [Kind] of the same name in the guardian.
// It is the UndoRecord of package pipeline.
type Record = interface{ UndoKind() string }

// A Holder is a record with descriptors, which the guardian holds until the record is forgotten. They may be closed as soon
// as it is recorded.
type Holder interface{ Descriptors() []*os.File }

// Kind is how the guardian does one kind of record.
type Kind struct {
	Name string
	// Do does what a record says, in the guardian, with the descriptors that came along. It bears that nothing is there
	// to be done.
	Do func(ctx context.Context, data json.RawMessage, fds []int) error
}

// builtin are the kinds every guardian knows.
var builtin = []Kind{
	{"remove-file", removeFile},
	{"write", write},
	{"signal", sendSignal},
	{"evict", evict},
	{"peek-offsets", peekOffsets},
}

// RemoveFile removes a file. With Ino not zero it is removed only if it is still that file: say so when the file is
// recorded after it was made. Recorded before, the name must be one that only the ward makes.
type RemoveFile struct {
	Dir       *os.File `json:"-"`
	Name      string
	Dev, Ino  uint64
	Directory bool // it is one, to be removed if it is empty
}

// UndoKind implements Record.
func (RemoveFile) UndoKind() string { return "remove-file" }

// Descriptors implements Holder.
func (r RemoveFile) Descriptors() []*os.File { return []*os.File{r.Dir} }

func removeFile(_ context.Context, data json.RawMessage, fds []int) error {
	var r RemoveFile
	if err := decode(data, &r, fds, 1); err != nil {
		return err
	}
	dir := fds[0]
	if r.Ino != 0 {
		var st unix.Stat_t
		err := unix.Fstatat(dir, r.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || err == nil && (st.Ino != r.Ino || st.Dev != r.Dev) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", r.Name, err)
		}
	}
	flags := 0
	if r.Directory {
		flags = unix.AT_REMOVEDIR
	}
	if err := unix.Unlinkat(dir, r.Name, flags); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", r.Name, err)
	}
	return nil
}

// Write writes Text to an open file: "0" to a cgroup's freezer, or what a sysctl was before.
type Write struct {
	File *os.File `json:"-"`
	Text string
}

// UndoKind implements Record.
func (Write) UndoKind() string { return "write" }

// Descriptors implements Holder.
func (r Write) Descriptors() []*os.File { return []*os.File{r.File} }

func write(_ context.Context, data json.RawMessage, fds []int) error {
	var r Write
	if err := decode(data, &r, fds, 1); err != nil {
		return err
	}
	_, err := unix.Pwrite(fds[0], []byte(r.Text), 0)
	return err
}

// Signal sends a signal to a task: SIGCONT to one that was stopped, SIGKILL to one that must not live on.
type Signal struct {
	Pidfd  *os.File `json:"-"`
	Signal syscall.Signal
}

// UndoKind implements Record.
func (Signal) UndoKind() string { return "signal" }

// Descriptors implements Holder.
func (r Signal) Descriptors() []*os.File { return []*os.File{r.Pidfd} }

func sendSignal(_ context.Context, data json.RawMessage, fds []int) error {
	var r Signal
	if err := decode(data, &r, fds, 1); err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fds[0], r.Signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %d: %w", r.Signal, err)
	}
	return nil
}

// decode reads a record's data and checks that it came with n descriptors.
func decode(data json.RawMessage, r any, fds []int, n int) error {
	if len(fds) != n {
		return fmt.Errorf("%d descriptors came with the record instead of %d", len(fds), n)
	}
	return json.Unmarshal(data, r)
}
