package stages

import (
	"cryo/collectors"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
)

// Kind is one kind of descriptor: the type its entries carry and who collects it.
type Kind struct {
	Type      fdinfo.FdTypes
	Collector collectors.Collector
}

// kinds is the table of all kinds of descriptors. A new kind is one row here, and its own file on each side.
var kinds = []Kind{
	{fdinfo.FdTypes_PIPE, collectors.Pipe{}},
	{fdinfo.FdTypes_FIFO, collectors.Fifo{}},
	{fdinfo.FdTypes_EVENTFD, collectors.Eventfd{}},
	{fdinfo.FdTypes_EVENTPOLL, collectors.Eventpoll{}},
	{fdinfo.FdTypes_NS, collectors.NsFile{}},
	{fdinfo.FdTypes_MEMFD, collectors.Memfd{}},
	{fdinfo.FdTypes_REG, collectors.RegFile{}},
}

// collectorKinds is the dump half of the table.
func collectorKinds() []collectors.Kind {
	list := make([]collectors.Kind, len(kinds))
	for i, k := range kinds {
		list[i] = collectors.Kind{Type: k.Type, Collector: k.Collector}
	}
	return list
}
