package e2e

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestNewConnections dumps a server to which clients connect all the time: none that has got in is thrown out. Those that
// find nobody there, between dump and restore, come back.
func TestNewConnections(t *testing.T) {
	RequireRoot(t)
	require(t, "go")
	s := service{name: "go", command: goCommand, connect: webClient("/thread")}.start(t)
	var served atomic.Int64
	var failed atomic.Pointer[error]
	var clients sync.WaitGroup
	quit := make(chan struct{})
	defer clients.Wait()
	defer close(quit)
	for range 4 {
		clients.Go(func() {
			pace := time.NewTicker(time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-quit:
					return
				case <-pace.C:
				}
				w := newWeb(s)
				err := w.hello()
				w.CloseIdleConnections()
				switch {
				case err == nil:
					served.Add(1)
				case !errors.Is(err, syscall.ECONNREFUSED):
					failed.Store(&err)
					return
				}
			}
		})
	}
	for range 2 {
		before := served.Load()
		s.await("requests", func() bool { return served.Load() > before+20 || failed.Load() != nil })
		images := t.TempDir()
		s.Dump(tools.Criu, images)
		s.Restore(tools.Criu, images)
	}
	before := served.Load()
	s.await("requests", func() bool { return served.Load() > before+20 || failed.Load() != nil })
	if err := failed.Load(); err != nil {
		t.Fatalf("after %d requests: %v", served.Load(), *err)
	}
	s.Dump(tools.Criu, t.TempDir(), "--leave-running")
	if err := newWeb(s).hello(); err != nil {
		t.Fatalf("a new connection after a dump that left the server running: %v", err)
	}
}
