package stages

import (
	"errors"

	"cryo/internal/netlock"
	"cryo/internal/tcprepair"
	"cryo/pipeline"
	"cryo/restorers"
)

// reconnection is what is left to do for the TCP connections of the set when the tree is let go: unlock the network, and
// take the sockets out of repair mode.
type reconnection struct {
	table   string // of the lock
	sockets tcprepair.Sockets
}

// reconnection fetches the sockets.
func (r *restorer) reconnection(f *family) (*reconnection, error) {
	if len(f.files.Connections()) == 0 {
		return nil, nil
	}
	sockets, err := f.files.ConnectionSockets(func(t *restorers.Table) int { return f.byNode[t.Node].PID() })
	return &reconnection{netlock.Table(f.set.Inventory.GetDumpCriuRunId(), f.tree.Root.ID), sockets}, err
}

// records is what the guardian has to know to do it.
func (c *reconnection) records() []pipeline.UndoRecord {
	if c == nil {
		return nil
	}
	records := []pipeline.UndoRecord{netlock.Record{Table: c.table}}
	for _, s := range c.sockets.Chunks() {
		records = append(records, s)
	}
	return records
}

func (c *reconnection) do() error {
	if c == nil {
		return nil
	}
	defer c.sockets.Close()
	return errors.Join(netlock.Unlock(c.table), c.sockets.Leave())
}
