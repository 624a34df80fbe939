package stages

import (
	"cryo/collectors"
	"cryo/internal/image"
	"cryo/restorers"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
)

// Kind is one kind of descriptor: the type its entries carry, who collects it and who restores it.
type Kind struct {
	Type      fdinfo.FdTypes
	Collector collectors.Collector
	Restorer  restorers.Restorer
}

// kinds is the table of all kinds of descriptors. A new kind is one row here, and its own file on each side.
var kinds = []Kind{
	{fdinfo.FdTypes_PIPE, collectors.Pipe{}, restorers.Pipe{}},
	{fdinfo.FdTypes_FIFO, collectors.Fifo{}, restorers.Fifo{}},
	{fdinfo.FdTypes_UNIXSK, collectors.Unix{}, restorers.Unix{}},
	{fdinfo.FdTypes_EVENTFD, collectors.Eventfd{}, restorers.EventFD{}},
	{fdinfo.FdTypes_EVENTPOLL, collectors.Eventpoll{}, restorers.EventPoll{}},
	{fdinfo.FdTypes_SIGNALFD, collectors.Signalfd{}, restorers.Signalfd{}},
	{fdinfo.FdTypes_TIMERFD, collectors.Timerfd{}, restorers.Timerfd{}},
	{fdinfo.FdTypes_INOTIFY, collectors.Inotify{}, restorers.Inotify{}},
	{fdinfo.FdTypes_FANOTIFY, collectors.Fanotify{}, restorers.Fanotify{}},
	{fdinfo.FdTypes_BPFMAP, collectors.BPFMap{}, restorers.BPFMap{}},
	{image.TypeUserfaultfd, collectors.Userfaultfd{}, restorers.Userfaultfd{}},
	{fdinfo.FdTypes_EXT, collectors.IOURing{}, restorers.IOURing{}},
	{fdinfo.FdTypes_PIDFD, collectors.Pidfd{}, restorers.Pidfd{}},
	{fdinfo.FdTypes_NS, collectors.NsFile{}, restorers.NsFile{}},
	{fdinfo.FdTypes_MEMFD, collectors.Memfd{}, restorers.Memfd{}},
	{fdinfo.FdTypes_TTY, collectors.TTY{}, restorers.TTY{}},
	{fdinfo.FdTypes_INETSK, collectors.Inet{}, restorers.Inet{}},
	{fdinfo.FdTypes_NETLINKSK, collectors.Netlink{}, restorers.Netlink{}},
	{fdinfo.FdTypes_PACKETSK, collectors.Packet{}, restorers.Packet{}},
	{fdinfo.FdTypes_TUNF, collectors.Tun{}, restorers.Tun{}},
	{fdinfo.FdTypes_REG, collectors.Mqueue{}, restorers.RegFile{}},
	{fdinfo.FdTypes_REG, collectors.RegFile{}, restorers.RegFile{}},
}

// collectorKinds is the dump half of the table.
func collectorKinds() []collectors.Kind {
	list := make([]collectors.Kind, len(kinds))
	for i, k := range kinds {
		list[i] = collectors.Kind{Type: k.Type, Collector: k.Collector}
	}
	return list
}

// restorerKinds is the restore half of the table.
func restorerKinds() map[fdinfo.FdTypes]restorers.Restorer {
	byType := map[fdinfo.FdTypes]restorers.Restorer{}
	for _, k := range kinds {
		if k.Restorer != nil {
			byType[k.Type] = k.Restorer
		}
	}
	return byType
}
