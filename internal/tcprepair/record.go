package tcprepair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sockets are connections that are, or may be, in repair mode. It is a record of the guardian, of at most PerRecord
// sockets: it takes them out of repair mode if the tool cannot.
type Sockets struct {
	Files []*os.File `json:"-"`
	Reuse []bool     // their SO_REUSEADDR
}

// PerRecord is how many sockets one record can hold.
const PerRecord = 16

// UndoKind implements guardian.Record.
func (Sockets) UndoKind() string { return "leave-repair" }

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

// Leave takes all sockets out of repair mode.
func (s Sockets) Leave() error {
	var errs []error
	for i, f := range s.Files {
		errs = append(errs, Leave(int(f.Fd()), s.Reuse[i]))
	}
	return errors.Join(errs...)
}

// Close gives the descriptors back.
func (s Sockets) Close() {
	for _, f := range s.Files {
		f.Close()
	}
}

// DoRecord does such a record in the guardian.
func DoRecord(_ context.Context, data json.RawMessage, fds []int) error {
	var s Sockets
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if len(fds) != len(s.Reuse) {
		return fmt.Errorf("%d sockets came with a record of %d", len(fds), len(s.Reuse))
	}
	var errs []error
	for i, fd := range fds {
		if err := Leave(fd, s.Reuse[i]); err != nil && !errors.Is(err, unix.ENOTSOCK) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
