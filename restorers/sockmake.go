package restorers

import (
	"context"
	"errors"
	"fmt"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// madeSocket is what sockets have in common that a task makes and the tool completes, once all descriptors that one may
// need are there.
type madeSocket struct {
	table  *Table
	number int // in table, from Open on
}

// socketEntry is what the images of such sockets have in common.
type socketEntry interface {
	GetId() uint32
	GetFlags() uint32
}

// emitMake makes the socket in its task.
func (m *madeSocket) emitMake(b *remote.Builder, slots *Slots, e socketEntry, family, kind, protocol uint32) {
	cloexec := slots.Cloexec(e.GetId())
	flags := int(e.GetFlags()&unix.O_NONBLOCK) | cloexec // which are SOCK_NONBLOCK and SOCK_CLOEXEC
	made := b.Call(unix.SYS_SOCKET, remote.Imm(family), remote.Imm(int(kind)|flags), remote.Imm(protocol))
	slots.Made(made, e.GetId(), cloexec)
	m.table, m.number = slots.t, slots.Number(e.GetId())
}

func (m *madeSocket) where() (*Table, int) { return m.table, m.number }

// completable is a socket to complete.
type completable interface {
	where() (*Table, int)
	title() string // for errors
}

// completeSockets takes each step with all sockets before the next one.
func completeSockets[S completable](ctx context.Context, list []S, open func(t *Table, fd int) (int, error), steps ...func(s S, fd int) error) error {
	for _, step := range steps {
		for _, s := range list {
			if err := completeSocket(ctx, s, open, step); err != nil {
				return err
			}
		}
	}
	return nil
}

// completeSocket takes a step with one socket.
func completeSocket[S completable](ctx context.Context, s S, open func(t *Table, fd int) (int, error), step func(s S, fd int) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	table, number := s.where()
	fd, err := open(table, number)
	if err == nil {
		err = errors.Join(step(s, fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("%s: fd %d: %s: %w", table.Node, number, s.title(), err)
	}
	return nil
}
