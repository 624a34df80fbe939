package collectors

import (
	"context"
	"slices"
	"strings"

	"cryo/internal/guardian"
	"cryo/internal/image"
	"cryo/internal/objid"
	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"google.golang.org/protobuf/proto"
)

// Env is what all stages of one dump may use at any time: services, no task state. What is not said to be for one
// goroutine is safe for concurrent use.
type Env struct {
	Options *options.Options
	// DryRun says that nothing outside may change: no links, and Images keeps nothing.
	DryRun bool
	// Images is where image files are created.
	Images image.Creator
	// Obstacles is where a collector notes what it cannot dump, in place of failing.
	Obstacles *Obstacles
	// IDs allocates the numbers of kernel objects. For one goroutine, in task order.
	IDs *objid.Allocator
	// Files knows every open file that the images will name. For one goroutine, in task order.
	Files *Files
	// Prober asks what descriptors are.
	Prober *Prober
	// Namespaces knows the namespaces of the tree. For one goroutine, in task order.
	Namespaces *Namespaces
	// PIDNS is the pid namespace of the tree, known from the snapshot on.
	PIDNS *PIDNS
	// UTSNS is the UTS namespace of the tree, known when its first task has been identified.
	UTSNS *UTSNS
	// NetNS is the network namespace of the tree, known when its first task has been identified.
	NetNS *NetNS
	// Shared knows the memory that several tasks may share. For one goroutine, in task order.
	Shared *SharedMemory
	// Sockets are the IP sockets the kernel lists. For one goroutine, in task order.
	Sockets *InetSockets
	// Connections are the TCP connections of the tree. For one goroutine, in task order.
	Connections *Connections
	// Undo puts how to take back a change of the outside world on the dump's undo stack; the records say the same to the
	// guardian.
	Undo func(name string, back func(context.Context) error, records ...guardian.Record) error
	// InTree says whether a process, by its pid in the tool's namespace, is part of the dump.
	InTree func(pid int) bool
}

// External says whether the user declared an object, named as in --external NAME or NAME:KEY, to stay outside.
func (e *Env) External(name string) bool {
	return slices.ContainsFunc(e.Options.External, func(given string) bool {
		return given == name || strings.HasPrefix(given, name+":")
	})
}

// localizeOwner translates the pid that a file's signals go to into the tree's namespace.
func (e *Env) localizeOwner(o *fown.FownEntry) {
	if pid := o.GetPid(); pid != 0 {
		o.Pid = proto.Uint32(uint32(e.PIDNS.Inner(int(pid))))
	}
}
