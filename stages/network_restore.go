package stages

import (
	"context"
	"errors"

	"cryo/internal/actions"
	"cryo/internal/netfilter"
	"cryo/internal/netlock"
	"cryo/internal/nsenter"
	"cryo/internal/options"
	"cryo/internal/tcprepair"
	"cryo/pipeline"
	"cryo/restorers"
)

// reconnection is what is left to do for the TCP connections of the set when the tree is let go: unlock the network, and
// take the sockets out of repair mode.
type reconnection struct {
	where    netlock.Where  // the lock
	unlocked func() error   // tells who wants to know that a namespace is open again
	iptables []netlock.Conn // what is locked by the iptables command
	sockets  tcprepair.Sockets
}

// reconnection fetches the sockets.
func (r *restorer) reconnection(f *family) (*reconnection, error) {
	if len(f.files.Connections()) == 0 && r.net == nil {
		return nil, nil
	}
	sockets, err := f.files.ConnectionSockets(func(t *restorers.Table) int { return f.byNode[t.Node].PID() })
	c := &reconnection{where: r.lockOf(f.restorePlan), sockets: sockets, unlocked: func() error { return nil }}
	if r.net != nil {
		c.unlocked = func() error { return r.scripts.Run(context.Background(), actions.NetworkUnlock) }
	}
	if m := f.set.Inventory.NetworkLockMethod; m == nil || *m == uint32(options.LockIptables) {
		c.iptables = f.files.Connections()
		if r.net != nil {
			c.iptables, c.unlocked = nil, func() error {
				err := nsenter.Net(r.net, netfilter.UnlockIptables)
				return errors.Join(err, r.scripts.Run(context.Background(), actions.NetworkUnlock))
			}
		}
	}
	return c, err
}

// records is what the guardian has to know to do it.
func (c *reconnection) records() []pipeline.UndoRecord {
	if c == nil {
		return nil
	}
	records := []pipeline.UndoRecord{netlock.Record(c.where)}
	for _, s := range c.sockets.Chunks() {
		records = append(records, s)
	}
	return records
}

// prepare lets the sockets leave repair mode under the lock, before the tasks may run: calls on one in that mode fail. If
// the tasks are killed after that, the sockets enter it again first, and the connections can be restored once more.
func (c *reconnection) prepare(u *pipeline.UndoStack) error {
	if c == nil {
		return nil
	}
	var records []pipeline.UndoRecord
	for _, s := range c.sockets.Chunks() {
		records = append(records, tcprepair.Silenced{Sockets: s})
	}
	if _, err := u.Push("silence the connections", 0, func(context.Context) error { return c.sockets.Enter() }, records...); err != nil {
		return err
	}
	return c.sockets.LeaveQuietly()
}

// do unlocks the network and lets both sides find out what they missed.
func (c *reconnection) do() error {
	if c == nil {
		return nil
	}
	defer c.sockets.Close()
	errs := []error{netlock.Unlock(c.where), c.unlocked()}
	if len(c.iptables) > 0 {
		_, err := netlock.UnlockIptables(c.where, c.iptables)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.sockets.Leave())...)
}

// lockOf is the lock that the dump has left, or that the restore makes in its place.
func (r *restorer) lockOf(p *restorePlan) netlock.Where {
	return netlock.Where{Table: netlock.Table(p.set.Inventory.GetDumpCriuRunId(), p.tree.Root.ID), Net: r.net}
}
