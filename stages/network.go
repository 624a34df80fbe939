package stages

import (
	"context"
	"errors"

	"cryo/collectors"
	"cryo/internal/actions"
	"cryo/internal/netlock"
	"cryo/internal/options"
	"cryo/internal/tcprepair"
	"cryo/pipeline"
)

// connections stores the TCP connections of the tree, and its network namespace where that is its own, under a lock of the
// network, and emits the tasks. The lock is kept until the tasks are let go; if they end it stays, for the restore to take
// away.
func (d *dumper) connections(s *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	conns := d.env.Connections
	if err := d.disconnect(conns); err != nil {
		return err
	}
	if err := d.env.NetNS.Write(d.env.Images, func() error { return d.lock(s.Context(), conns) }); err != nil {
		return err
	}
	if err := conns.Store(d.env.Images); err != nil {
		return err
	}
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// disconnect says how sockets leave repair mode. Undone in reverse, the network is open again when they do, so that the
// window probes they send get through.
func (d *dumper) disconnect(conns *collectors.Connections) error {
	if conns.Len() == 0 {
		return nil
	}
	sockets := conns.Sockets()
	var records []pipeline.UndoRecord
	for _, s := range sockets.Chunks() {
		records = append(records, s)
	}
	leave, err := d.undo.Push("take sockets out of repair mode", 0, func(context.Context) error { return sockets.Leave() }, records...)
	d.reconnecting = []*pipeline.UndoStep{leave}
	return err
}

// lock locks the connections, or all of the tree's own network namespace.
func (d *dumper) lock(ctx context.Context, conns *collectors.Connections) error {
	if !d.locks() {
		return nil
	}
	where := d.where()
	unlock, err := d.undo.Push("unlock the network", 0, d.unlock, netlock.Record(where))
	d.reconnecting = append([]*pipeline.UndoStep{unlock}, d.reconnecting...)
	if err != nil {
		return err
	}
	if where.Net == nil {
		return netlock.Lock(where, conns.Ends())
	}
	if err := d.scripts.Run(ctx, actions.NetworkLock); err != nil {
		return err
	}
	return netlock.LockAll(where)
}

// unlock takes the lock away.
func (d *dumper) unlock(ctx context.Context) error {
	err := netlock.Unlock(d.where())
	if d.where().Net != nil {
		err = errors.Join(err, d.scripts.Run(ctx, actions.NetworkUnlock))
	}
	return err
}

// where is the lock of this dump.
func (d *dumper) where() netlock.Where {
	return netlock.Where{Table: netlock.Table(d.runID, 0), Net: d.env.NetNS.Own()}
}

// locks says whether the dump locks the network.
func (d *dumper) locks() bool {
	return (d.env.Connections.Len() > 0 || d.env.NetNS.Own() != nil) && d.o.NetworkLock != options.LockSkip
}

// lockMethod is what the set says of the lock. It is one of nf_tables even where iptables was asked for: what iptables
// does, a table of our own does without its command and without touching the tables of others.
func (d *dumper) lockMethod() options.NetworkLock {
	if d.locks() {
		return options.LockNftables
	}
	return d.o.NetworkLock
}

// reconnections is what the guardian has to know to do reconnect.
func (d *dumper) reconnections() []pipeline.UndoRecord {
	var records []pipeline.UndoRecord
	if d.locks() {
		records = append(records, netlock.Record(d.where()))
	}
	if d.doors != nil {
		records = append(records, netlock.Record(d.entrance))
	}
	for _, s := range d.env.Connections.Sockets().Chunks() {
		records = append(records, s)
	}
	return records
}

// silence is what comes before the end of the tasks: their connections end without a word to the peers.
func (d *dumper) silence() error { return d.env.Connections.Sockets().Enter() }

// silences is what the guardian has to know to do silence.
func (d *dumper) silences() []pipeline.UndoRecord {
	var records []pipeline.UndoRecord
	for _, s := range d.env.Connections.Sockets().Chunks() {
		records = append(records, tcprepair.Silenced{Sockets: s})
	}
	return records
}

// reconnect gives the connections back to tasks that live on.
func (d *dumper) reconnect() error {
	var errs []error
	if d.locks() {
		errs = append(errs, d.unlock(context.Background()))
	}
	return errors.Join(append(errs, d.env.Connections.Sockets().Leave(), d.openDoors())...)
}
