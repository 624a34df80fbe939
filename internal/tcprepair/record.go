package tcprepair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Sockets are connections that are, or may be, in repair mode. As a record of the guardian, of at most PerRecord sockets,
// they leave it: their tasks go on.
type Sockets struct {
	Files []*os.File `json:"-"`
	Reuse []bool     // their SO_REUSEADDR
}

// Silenced are connections whose tasks are about to end, or have ended. As a record of the guardian they enter repair mode,
// so that their peers are told nothing.
type Silenced struct{ Sockets }

// PerRecord is how many sockets one record can hold.
const PerRecord = 16

// UndoKind implements guardian.Record.
func (Sockets) UndoKind() string { return "leave-repair" }

// UndoKind implements guardian.Record.
func (Silenced) UndoKind() string { return "enter-repair" }

// Descriptors implements guardian.Holder.
func (s Sockets) Descriptors() []*os.File { return s.Files }

// Chunks splits the sockets into records.
func (s Sockets) Chunks() []Sockets {
	var all []Sockets
	for at := 0; at < len(s.Files); at += PerRecord {
		end := min(at+PerRecord, len(s.Files))
		all = append(all, Sockets{s.Files[at:end], s.Reuse[at:end]})
	}
	return all
}

// Leave takes all sockets out of repair mode, with a window probe each.
func (s Sockets) Leave() error { return s.each(Leave) }

// LeaveQuietly takes all sockets out of repair mode.
func (s Sockets) LeaveQuietly() error { return s.each(LeaveQuietly) }

// Enter puts all sockets in repair mode.
func (s Sockets) Enter() error { return s.each(func(fd int, _ bool) error { return Enter(fd) }) }

func (s Sockets) each(do func(fd int, reuse bool) error) error {
	var errs []error
	for i, f := range s.Files {
		errs = append(errs, do(int(f.Fd()), s.Reuse[i]))
	}
	return errors.Join(errs...)
}

// Close gives the descriptors back.
func (s Sockets) Close() {
	for _, f := range s.Files {
		f.Close()
	}
}

// DoLeave does a record of Sockets in the guardian.
func DoLeave(_ context.Context, data json.RawMessage, fds []int) error { return do(data, fds, Leave) }

// DoEnter does a record of Silenced.
func DoEnter(_ context.Context, data json.RawMessage, fds []int) error {
	return do(data, fds, func(fd int, _ bool) error { return Enter(fd) })
}

func do(data json.RawMessage, fds []int, one func(fd int, reuse bool) error) error {
	var s Sockets
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if len(fds) != len(s.Reuse) {
		return fmt.Errorf("%d sockets came with a record of %d", len(fds), len(s.Reuse))
	}
	var errs []error
	for i, fd := range fds {
		errs = append(errs, one(fd, s.Reuse[i]))
	}
	return errors.Join(errs...)
}
