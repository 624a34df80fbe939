package restorers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"cryo/internal/image"

	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	"golang.org/x/sys/unix"
)

// skQueues is what waits in the queues of sockets: sk-queues.img. The bytes stay in the image until they are sent.
type skQueues struct {
	src     image.Source
	plan    *FilePlan
	packets map[uint32]int         // how many there are, by file
	sent    map[uint32][]uint32    // files on the way, by the file whose queue they are in
	to      map[uint32]queueTarget // files that are planned
}

// queueTarget is a socket with a queue.
type queueTarget interface {
	// outlet opens what messages to the socket go through; from is the address they are to come from, nil for any.
	// The same outlet may serve many messages and is closed when another is asked for.
	outlet(open opener, from []byte) (*outlet, error)
	// stream says whether messages have no boundaries.
	stream() bool
}

// opener duplicates a descriptor of the task that has a table into the tool.
type opener = func(t *Table, fd int) (int, error)

// outlet is a descriptor of the tool to send through.
type outlet struct {
	fd     int
	to     []byte // the address to send to; nil where the socket is connected
	handle int    // a descriptor that the address goes by; -1: none
	wide   *bool  // set when the buffer of the socket was made larger; nil if nobody cares
}

const (
	maxRights = 253     // descriptors in one message (SCM_MAX_FD)
	maxPacket = 1 << 30 // bytes in a message: the largest buffer
)

// planQueues checks sk-queues.img and notes whose queues hold what.
func planQueues(p *FilePlanner) (*skQueues, error) {
	type key struct{}
	return Shared(p, key{}, func() (*skQueues, error) {
		q := &skQueues{src: p.Set.Source, plan: p.plan, packets: map[uint32]int{}, sent: map[uint32][]uint32{}, to: map[uint32]queueTarget{}}
		n := 0
		for e, err := range image.Entries(p.Set.Source, image.SkQueues, 0) {
			if errors.Is(err, fs.ErrNotExist) {
				return q, nil
			}
			if err != nil {
				return nil, err
			}
			rights, err := rightsOf(e)
			if err != nil {
				return nil, image.Errorf(image.SkQueues.File(0), n, "%w", err)
			}
			for _, id := range rights {
				if p.Set.Files[id] == nil {
					return nil, image.Errorf(image.SkQueues.File(0), n, "id %d is no file of the set", id)
				}
			}
			q.packets[e.GetIdFor()]++
			q.sent[e.GetIdFor()] = append(q.sent[e.GetIdFor()], rights...)
			n++
		}
		p.plan.after(Fill, q)
		return q, nil
	})
}

// rightsOf are the files that come with a packet.
func rightsOf(e *sk_packet.SkPacketEntry) ([]uint32, error) {
	var ids []uint32
	for _, c := range e.GetScm() {
		if c.GetType() != unix.SCM_RIGHTS {
			return nil, fmt.Errorf("control messages of type %d cannot be restored", c.GetType())
		}
		ids = append(ids, c.GetRights()...)
	}
	if len(ids) > maxRights {
		return nil, fmt.Errorf("%d descriptors in one message", len(ids))
	}
	return ids, nil
}

// has says whether something waits for a file.
func (q *skQueues) has(id uint32) bool { return q.packets[id] > 0 }

// rights lists the files that are on the way to a file, each once.
func (q *skQueues) rights(id uint32) []uint32 {
	ids := slices.Clone(q.sent[id])
	slices.Sort(ids)
	return slices.Compact(ids)
}

// fill sends everything in the order of the image.
func (q *skQueues) fill(ctx context.Context, open func(t *Table, fd int) (int, error)) error {
	d, f, err := image.Open(q.src, image.SkQueues, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	w := &queueWriter{skQueues: q, open: open}
	defer w.close()
	e := &sk_packet.SkPacketEntry{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.NextInto(e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if q.to[e.GetIdFor()] == nil {
			continue // of a socket that nobody has, or that is handed in
		}
		data, err := d.PayloadBytes(maxPacket)
		if err == nil {
			err = w.send(e, data)
		}
		if err != nil {
			return fmt.Errorf("queue of file %d: %w", e.GetIdFor(), err)
		}
	}
}

// queueWriter keeps the outlet of the last packet.
type queueWriter struct {
	*skQueues
	open opener
	out  *outlet
	id   uint32
	from string
}

func (w *queueWriter) close() {
	if w.out != nil {
		unix.Close(w.out.fd)
		unix.Close(w.out.handle)
		w.out = nil
	}
}

// send puts a packet into its queue.
func (w *queueWriter) send(e *sk_packet.SkPacketEntry, data []byte) error {
	target, origin := w.to[e.GetIdFor()], image.GetPacketOrigin(e)
	if w.out == nil || w.id != e.GetIdFor() || w.from != string(origin.Addr) {
		w.close()
		var err error
		if w.out, err = target.outlet(w.open, origin.Addr); err != nil {
			return err
		}
		w.id, w.from = e.GetIdFor(), string(origin.Addr)
	}
	fds, err := w.rightsOf(e)
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	if c := origin.Creds; c != nil {
		control = append(control, unix.UnixCredentials(&unix.Ucred{Pid: int32(w.plan.hostID(int(c.PID))), Uid: c.UID, Gid: c.GID})...)
	}
	return w.out.send(data, control, target.stream())
}

// rightsOf opens the files that go with a packet.
func (w *queueWriter) rightsOf(e *sk_packet.SkPacketEntry) ([]int, error) {
	ids, err := rightsOf(e)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, id := range ids {
		f := w.plan.Files[id]
		if f == nil || f.At == nil {
			return fds, fmt.Errorf("file %d, which is on the way to it, has not been made", id)
		}
		fd, err := w.open(f.At, f.FD)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// widen makes the sending buffer as large as can be, for a queue may hold what several senders put there.
func (o *outlet) widen() {
	const most = maxPacket - 1
	if unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, most) != nil {
		unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, most)
	}
	if o.wide != nil {
		*o.wide = true
	}
}

// send sends one message, or all bytes of a stream. Nobody reads, so it must not wait.
func (o *outlet) send(data, control []byte, stream bool) error {
	for widened := false; ; {
		n, err := sendmsg(o.fd, data, control, o.to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EMSGSIZE)) && !widened:
			o.widen()
			widened = true
			continue
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("it is full (raise net.unix.max_dgram_qlen or net.core.wmem_max): %w", err)
		case err != nil:
			return fmt.Errorf("send %d bytes: %w", len(data), err)
		case n == len(data):
			return nil
		case !stream:
			return fmt.Errorf("only %d of %d bytes were taken", n, len(data))
		}
		data, control = data[n:], nil // descriptors go with the first byte
	}
}
