package collectors

import (
	"os"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// sent numbers the descriptors that came with a message waiting in carrier's queue. They are the tool's own by having
// been looked at; those of files not met before stay open until the dump ends, for later ones to be compared with.
func (f *Files) sent(carrier *Probe, fds []int) ([]uint32, error) {
	ids := make([]uint32, 0, len(fds))
	for i, fd := range fds {
		id, fresh, err := f.sentOne(carrier, fd)
		if err != nil {
			closeAll(fds[i:])
			return nil, err
		}
		ids = append(ids, id)
		if fresh {
			f.inFlight = append(f.inFlight, fd)
		} else {
			unix.Close(fd)
		}
	}
	return ids, nil
}

func (f *Files) sentOne(carrier *Probe, fd int) (id uint32, fresh bool, err error) {
	if f.self == nil {
		f.self = &Task{Pid: os.Getpid()}
		if f.self.Proc, err = procfs.OpenTask(f.self.Pid); err != nil {
			return 0, false, err
		}
	}
	p := &Probe{Task: f.self, FD: fd, Carrier: carrier}
	if err := f.env.Prober.probe(p, false); err != nil {
		return 0, false, err
	}
	id, fresh, err = f.number(p)
	if p.Info.Field("lock") != "" {
		f.sentLocked[id] = p
	}
	return id, fresh, err
}

// closeInFlight gives back what sent has kept.
func (f *Files) closeInFlight() {
	closeAll(f.inFlight)
	f.inFlight = nil
	if f.self != nil {
		f.self.Close()
		f.self = nil
	}
}
