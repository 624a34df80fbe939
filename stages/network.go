package stages

import (
	"context"
	"errors"

	"cryo/collectors"
	"cryo/internal/netlock"
	"cryo/internal/options"
	"cryo/internal/tcprepair"
	"cryo/pipeline"
)

// connections stores the TCP connections of the tree, under a lock of the network, and emits the tasks. The lock is kept
// until the tasks are let go; if they end it stays, for the restore to take away.
func (d *dumper) connections(_ *pipeline.Stage, tasks []*collectors.Task, emit func(*collectors.Task) error) error {
	if conns := d.env.Connections; conns.Len() > 0 {
		if err := d.disconnect(conns); err != nil {
			return err
		}
	}
	for _, t := range tasks {
		if err := emit(t); err != nil {
			return err
		}
	}
	return nil
}

// disconnect locks the network and takes the connections. Undone in reverse, the network is open again when the sockets
// leave repair mode, so that the window probes they send get through.
func (d *dumper) disconnect(conns *collectors.Connections) error {
	sockets := conns.Sockets()
	var records []pipeline.UndoRecord
	for _, s := range sockets.Chunks() {
		records = append(records, s)
	}
	leave, err := d.undo.Push("take sockets out of repair mode", 0, func(context.Context) error { return sockets.Leave() }, records...)
	d.reconnecting = []*pipeline.UndoStep{leave}
	if err != nil {
		return err
	}
	if d.locks() {
		table := netlock.Table(d.runID, 0)
		unlock, err := d.undo.Push("unlock the network", 0, func(context.Context) error { return netlock.Unlock(table) }, netlock.Record{Table: table})
		d.reconnecting = []*pipeline.UndoStep{unlock, leave}
		if err != nil {
			return err
		}
		if err := netlock.Lock(table, conns.Ends()); err != nil {
			return err
		}
	}
	return conns.Store(d.env.Images)
}

// locks says whether the dump locks the network.
func (d *dumper) locks() bool {
	return d.env.Connections.Len() > 0 && d.o.NetworkLock != options.LockSkip
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
		records = append(records, netlock.Record{Table: netlock.Table(d.runID, 0)})
	}
	if d.doors != nil {
		records = append(records, netlock.Record{Table: netlock.Doors(d.runID)})
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
		errs = append(errs, netlock.Unlock(netlock.Table(d.runID, 0)))
	}
	return errors.Join(append(errs, d.env.Connections.Sockets().Leave(), d.openDoors())...)
}
