package restorers

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// EventPoll restores epoll sets (epoll_create1, Linux 2.6.27).
type EventPoll struct{}

type eventPoll struct {
	id   uint32
	tfds []*eventpoll.EventpollTfdEntry
}

// oldTfds reads eventpoll-tfd.img, where criu before 2.12 kept what is watched.
func oldTfds(p *FilePlanner) (map[uint32][]*eventpoll.EventpollTfdEntry, error) {
	type key struct{}
	return Shared(p, key{}, func() (map[uint32][]*eventpoll.EventpollTfdEntry, error) {
		list, err := image.ReadOptional(p.Set.Source, image.EventpollTfd, 0)
		all := map[uint32][]*eventpoll.EventpollTfdEntry{}
		for _, t := range list {
			all[t.GetId()] = append(all[t.GetId()], t)
		}
		return all, err
	})
}

// Plan notes what is watched.
func (EventPoll) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	ep := e.GetEpfd()
	if ep == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no epfd", e.GetId())
	}
	old, err := oldTfds(p)
	if err != nil {
		return nil, err
	}
	return &eventPoll{e.GetId(), append(ep.GetTfd(), old[e.GetId()]...)}, nil
}

func (e *eventPoll) Needs() []uint32 { return nil }

// Settle finds the task whose numbers the set goes by: the first that has all the descriptors watched. A set that no task
// has is on the way to one, its owner.
func (e *eventPoll) Settle(p *FilePlanner) error {
	f := p.File(e.id)
	var missing uint32
	held := slices.ContainsFunc(p.Tables(), func(t *Table) bool { return t.first(e.id) >= 0 })
	for _, t := range p.Tables() {
		if held && t.first(e.id) < 0 || !held && t != f.Owner {
			continue
		}
		ok := true
		for _, w := range e.tfds {
			if !t.isFinal(int(w.GetTfd())) {
				ok, missing = false, w.GetTfd()
				break
			}
		}
		if ok {
			f.Owner = t
			return nil
		}
	}
	return fmt.Errorf("epoll set watches descriptor %d, which no task that has the set has", missing)
}

func (e *eventPoll) Emit(lv Level, b *remote.Builder, s *Slots) error {
	switch lv {
	case Open:
		cloexec := s.Cloexec(e.id)
		s.Made(b.Call(unix.SYS_EPOLL_CREATE1, remote.Imm(cloexec)), e.id, cloexec)
	case Attach, LateWatch:
		for _, w := range e.tfds {
			if s.Late(int(w.GetTfd())) != (lv == LateWatch) {
				continue
			}
			b.Call(unix.SYS_EPOLL_CTL, remote.Imm(s.Number(e.id)), remote.Imm(unix.EPOLL_CTL_ADD), remote.Imm(w.GetTfd()),
				b.Bytes(epollEvent(w.GetEvents(), w.GetData()))).Must().Discard()
		}
	}
	return nil
}

// epollEvent is struct epoll_event, which has no padding on x86-64 alone.
func epollEvent(events uint32, data uint64) []byte {
	e := binary.LittleEndian.AppendUint32(nil, events)
	if runtime.GOARCH != "amd64" {
		e = append(e, 0, 0, 0, 0)
	}
	return binary.LittleEndian.AppendUint64(e, data)
}
