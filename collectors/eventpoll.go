package collectors

import (
	"fmt"

	"cryo/internal/objid"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Eventpoll collects epoll instances: what they watch, with which events and data (fdinfo, Linux 3.8).
type Eventpoll struct{}

// Match takes anonymous inodes named eventpoll.
func (Eventpoll) Match(p *Probe) bool { return p.anonymous("[eventpoll]") }

// Collect makes an eventpoll_file_entry with an entry for each watched file.
func (Eventpoll) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	e := &eventpoll.EventpollFileEntry{Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	times := map[uint32]uint32{} // a number that was closed and used again may be watched more than once
	for line := range p.Info.Lines("tfd") {
		t := &eventpoll.EventpollTfdEntry{Id: proto.Uint32(id)}
		var tfd, events, dev uint32
		var data, inode uint64
		var pos int64
		// A kernel before 5.2 does not tell the file; the rest of the line is then empty.
		n, _ := fmt.Sscanf(line, "%d events: %x data: %x pos:%d ino:%x sdev:%x", &tfd, &events, &data, &pos, &inode, &dev)
		if n < 3 {
			return nil, fmt.Errorf("fdinfo of an epoll descriptor has an unknown format: %q", line)
		}
		nth := times[tfd]
		times[tfd]++
		number, err := f.watched(p, tfd, nth, inode)
		if err != nil {
			return nil, err
		}
		t.Tfd, t.Events, t.Data = proto.Uint32(number), proto.Uint32(events), proto.Uint64(data)
		t.Dev, t.Inode, t.Pos = proto.Uint32(dev), proto.Uint64(inode), proto.Uint64(uint64(pos))
		e.Tfd = append(e.Tfd, t)
	}
	return &fdinfo.FileEntry{Epfd: e}, nil
}

// watched finds the descriptor through which a watched file is still open: mostly the number it was added by, else one
// that it was duplicated to. Numbers are those of the task that has the instance, or is about to receive it.
func (f *Files) watched(p *Probe, tfd, nth uint32, inode uint64) (uint32, error) {
	slot := objid.EpollSlot{Epoll: uint32(p.FD), Target: tfd, Nth: nth}
	same := func(fd int) (bool, error) { return objid.SameEpollTarget(p.holder().Pid, fd, p.Task.Pid, slot) }
	ok, err := same(int(tfd))
	if err == unix.EOPNOTSUPP || err == unix.EINVAL || ok {
		return tfd, nil // a kernel before 4.13 cannot compare
	}
	for _, other := range f.probes {
		if other.Stat.Ino != inode {
			continue
		}
		if ok, err := same(other.FD); err == nil && ok {
			return uint32(other.FD), nil
		}
	}
	return 0, p.Obstacle(fmt.Sprintf("an epoll instance that watches a file which the task has closed (it was descriptor %d)", tfd), "")
}
