package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/actions"
	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// errGone cancels the work of a client that has gone.
var errGone = errors.New("the client has gone")

// follower tells the client how its work goes on, and cancels the work if it goes away. It implements actions.Client.
type follower struct {
	conn     *Conn
	o        *options.Options
	unfollow func() // from here on the work is finished, client or not
	root     int    // pid of the tree's root, once it is known
}

// follow has the work be cancelled when the client goes away, until it is past the point of no return or has ended.
func follow(ctx context.Context, conn *Conn, o *options.Options) (context.Context, *follower) {
	ctx, cancel := context.WithCancelCause(ctx)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if conn.Gone(watching) == nil {
			cancel(errGone)
		}
	}()
	return ctx, &follower{conn: conn, o: o, unfollow: func() { stop(); <-ended }}
}

// last says that what follows the word about a phase is not taken back any more: the set of a dump is valid, a restored tree whole.
func last(verb options.Verb, p actions.Phase) bool {
	switch verb {
	case options.Dump:
		return p == actions.PostDump
	case options.Restore:
		return p == actions.PreResume
	}
	return false
}

// Phase implements actions.Client.
func (f *follower) Phase(ctx context.Context, p actions.Phase, initPID int) error {
	f.root = initPID
	if last(f.o.Verb, p) { // whether the client is there for this one, its answer shows
		f.unfollow()
	}
	_, err := f.notify(ctx, p, nil)
	return err
}

// External implements actions.Client.
func (f *follower) External(ctx context.Context) ([]string, error) {
	reply, err := f.notify(ctx, actions.QueryExtFiles, nil)
	return reply.GetOpts().GetExternal(), err
}

// PtyMaster implements actions.Client.
func (f *follower) PtyMaster(ctx context.Context, master *os.File) error {
	_, err := f.notify(ctx, actions.OrphanPtsMaster, master)
	return err
}

// notify tells the client of a phase, if it wants to know, and waits for its word.
func (f *follower) notify(ctx context.Context, p actions.Phase, with *os.File) (*rpc.CriuReq, error) {
	if !f.o.NotifyScripts {
		return nil, nil
	}
	script := string(p)
	n := &rpc.CriuNotify{Script: &script}
	if f.root > 0 && (p == actions.SetupNamespaces || p == actions.PostRestore) { // only these have it, as criu's
		pid := int32(f.root)
		n.Pid = &pid
	}
	err := f.conn.send(&rpc.CriuResp{Type: rpc.CriuReqType_NOTIFY.Enum(), Success: new(true), Notify: n}, with)
	if err != nil {
		return nil, fmt.Errorf("tell the client: %w", err)
	}
	reply, err := f.conn.Next(ctx)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errGone
	case err != nil:
		return nil, err
	case reply.GetType() != rpc.CriuReqType_NOTIFY:
		return nil, fmt.Errorf("the client answers with a request of type %v", reply.GetType())
	case !reply.GetNotifySuccess():
		return nil, errors.New("the client says that it has failed")
	}
	f.conn.take()
	return reply, nil
}
