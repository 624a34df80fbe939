package stages

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// made is the processes a restore has made and that end with it, until they are let go.
type made struct {
	mu   sync.Mutex
	pids []int
}

func (m *made) add(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pids = append(m.pids, pid)
}

func (m *made) remove(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pids = slices.DeleteFunc(m.pids, func(p int) bool { return p == pid })
}

// kill ends them all.
func (m *made) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pid := range m.pids {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// letGo forgets them all, so that kill does nothing from now on, unless ctx is cancelled already.
func (m *made) letGo(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	m.pids = nil
	return nil
}
