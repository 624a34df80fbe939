package pagecopy

import (
	"context"
	"syscall"

	"cryo/internal/image"
)

// Socket is a destination whose bytes go into a socket as they are, each run's behind its announcement.
type Socket interface {
	Dest
	// Socket is the socket; nil where what goes there is made by Write.
	Socket() syscall.Conn
	// Flush returns when all that was announced and written so far has gone there.
	Flush() error
	// Advance tells that n bytes were put into the socket.
	Advance(n int64)
}

// Sender is a source that can put its pages into a socket by itself, which moves them once less.
type Sender interface {
	// Ready and Dense are those of Self.
	Ready() bool
	Dense(addr, n uint64) bool
	// SendPages puts the range into a socket and returns how many bytes it managed. What is missing is read and written
	// by the copier. An error says that this number is not known. When ctx ends it ends early.
	SendPages(ctx context.Context, to syscall.Conn, r Range) (int64, error)
}

// sendBatch is how many bytes are sent at a time. It can be much, because a source stops sending at once when it has to; between
// two batches several threads wait for a processor, one after the other, and nothing is sent.
const sendBatch = 128 << 20

// LetSourceSend makes the copier leave to the source what it may, if the destination is a socket. It comes before the
// first Put.
func (c *Copier) LetSourceSend(s Sender) {
	dst, ok := c.dst.(Socket)
	if !ok || dst.Socket() == nil {
		return
	}
	c.self, c.selfBatch, c.moveSelf = s, sendBatch, func(b *batch) error { return c.moveSent(b, dst, s) }
}

// moveSent announces the ranges of a batch, and lets the source send the bytes of each.
func (c *Copier) moveSent(b *batch, dst Socket, s Sender) error {
	if err := c.await(b); err != nil {
		return err
	}
	for _, r := range b.ranges {
		if err := dst.Add(r.Addr, r.Len/pageSize, r.Flags|image.PEPresent); err != nil {
			return err
		}
		c.stats.Written.Add(r.Len / pageSize)
		done, err := c.sendRange(dst, s, r)
		if err != nil {
			return err
		}
		c.stats.Self.Add(done / pageSize)
		err = c.rest([]Range{r}, b.buffer(), done, func(part []byte, _ uint64) error {
			_, err := dst.Write(part)
			return err
		})
		if err != nil {
			return err
		}
	}
	close(b.placed)
	return nil
}

// sendRange lets the source send a range, and returns how many bytes it has sent.
func (c *Copier) sendRange(dst Socket, s Sender, r Range) (uint64, error) {
	if err := dst.Flush(); err != nil {
		return 0, err
	}
	n, err := s.SendPages(c.ctx, dst.Socket(), r)
	dst.Advance(n)
	return uint64(n), err
}
