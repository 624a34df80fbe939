package stages

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sort"

	"cryo/collectors"
	"cryo/internal/lazy"
	"cryo/internal/pagecopy"
	"cryo/pipeline"
)

// serveLate is a page server for the memory that was left in the tasks. They stand still until their restore elsewhere has
// everything and says so; if it goes away before, they go on here and the set is void.
func (d *dumper) serveLate(s *pipeline.Stage, v valid) (valid, error) {
	var l net.Listener
	if d.o.PageServerFD < 0 {
		var err error
		if l, err = ListenPages(s.Context(), d.o); err != nil {
			return v, err
		}
	}
	if err := SignalReady(s.Context(), d.o); err != nil {
		return v, err
	}
	conn, err := acceptPages(s.Context(), d.o, l)
	if err != nil {
		return v, err
	}
	defer conn.Close()
	defer context.AfterFunc(s.Context(), func() { conn.Close() })()
	n, err := lazy.ServeGets(conn, func(pid int) (lazy.Pages, error) {
		i := slices.IndexFunc(v.tasks, func(t *collectors.Task) bool { return t.VPid == pid && t.Live() })
		if i < 0 {
			return nil, fmt.Errorf("is not in the tree")
		}
		return &livePages{v.tasks[i].Memory.Late(), v.tasks[i].Pages()}, nil
	})
	if err != nil {
		return v, fmt.Errorf("the restore at %v: %w", conn.RemoteAddr(), err)
	}
	slog.Info("lazy-pages: the restore has everything", "pages", n)
	return v, nil
}

// livePages are the late pages of a task that stands still.
type livePages struct {
	late []pagecopy.Range
	task *pagecopy.Task
}

// Late implements lazy.Pages.
func (p *livePages) Late() []lazy.Range {
	var list []lazy.Range
	for _, r := range p.late {
		list = append(list, lazy.Range{Start: r.Addr, End: r.Addr + r.Len})
	}
	return list
}

// Fetch implements lazy.Pages.
func (p *livePages) Fetch(addr, n uint64, deliver lazy.Deliver) error {
	end := addr + n
	buf := make([]byte, min(n, 1<<20))
	for i := sort.Search(len(p.late), func(i int) bool { return p.late[i].Addr+p.late[i].Len > addr }); addr < end; {
		if i == len(p.late) || p.late[i].Addr > addr {
			return fmt.Errorf("page %x was not left here", addr)
		}
		r := p.late[i]
		stop := min(end, r.Addr+r.Len, addr+uint64(len(buf)))
		r.Addr, r.Len = addr, stop-addr
		if err := p.task.ReadPages([]pagecopy.Range{r}, buf[:r.Len]); err != nil {
			return err
		}
		if err := deliver(addr, buf[:r.Len]); err != nil {
			return err
		}
		if addr = stop; addr == p.late[i].Addr+p.late[i].Len {
			i++
		}
	}
	return nil
}

// Close implements lazy.Pages.
func (p *livePages) Close() error { return p.task.Close() }
