package options

import (
	"fmt"
	"reflect"
)

// Capability is a part of the tool that options and verbs need; the text names it in a refusal.
type Capability string

// The capabilities. Whoever builds one adds it to built, in the same change.
const (
	Core        Capability = ""
	Never       Capability = "it is deprecated"
	Dumps       Capability = "dumping"
	Restores    Capability = "restoring"
	Checks      Capability = "the kernel check"
	Incremental Capability = "incremental dumps"
	Dedups      Capability = "deduplication"
	Compression Capability = "compression"
	Integrity   Capability = "checksums and encryption"
	Lazy        Capability = "lazy restore"
	PageServing Capability = "the page server"
	TLSWire     Capability = "TLS"
	Streamer    Capability = "streaming images"
	RPCService  Capability = "the RPC service"
	UnixSockets Capability = "UNIX sockets"
	TCP         Capability = "TCP connections"
	Locks       Capability = "file locks"
	Ghosts      Capability = "deleted files"
	Devices     Capability = "evading missing devices"
	Notify      Capability = "inotify and fanotify watches"
	ExternalRes Capability = "external resources"
	Inherit     Capability = "inherited descriptors"
	Validation  Capability = "file validation"
	Terminals   Capability = "terminals"
	Mounts      Capability = "mount namespaces"
	Namespaces  Capability = "namespaces"
	NetNS       Capability = "network namespaces"
	Cgroups     Capability = "control groups"
	CgFreezer   Capability = "freezing by control group"
	LSM         Capability = "security profiles"
	Compat      Capability = "32-bit tasks"
	Plugins     Capability = "plugins"
	Uprobes     Capability = "user probes"
	Tracing     Capability = "tracing"
	DryRunning  Capability = "the dry run"
	Syncing     Capability = "putting a set on stable storage"
	CPUChecks   Capability = "comparing processors"
)

// built lists what there is. It is the one place to change when a capability lands.
var built = map[Capability]bool{
	Core:        true,
	Checks:      true,
	CgFreezer:   true,
	Tracing:     true,
	PageServing: true,
	TLSWire:     true,
	Streamer:    true,
	CPUChecks:   true,
	Dumps:       true,
	Lazy:        true,
	Incremental: true,
	Dedups:      true,
	Compression: true,
	Integrity:   true,
	Devices:     true,
	UnixSockets: true,
	DryRunning:  true,
	Syncing:     true,
	Restores:    true,
	NetNS:       true,
	Ghosts:      true,
	Validation:  true,
	Inherit:     true,
	Terminals:   true,
	ExternalRes: true,
	TCP:         true,
	Cgroups:     true,
	Locks:       true,
	Notify:      true,
	RPCService:  true,
}

// Built reports whether the tool has a capability.
func (c Capability) Built() bool { return built[c] }

// NotBuiltError is the refusal of an option or verb whose capability is not there yet.
type NotBuiltError struct {
	What string // as the user wrote it: "--lazy-pages", "criu dedup"
	Capability
}

func (e *NotBuiltError) Error() string {
	if e.Capability == Never {
		return fmt.Sprintf("%s: %s", e.What, string(e.Capability))
	}
	return fmt.Sprintf("%s: not built yet in this version (needs %s)", e.What, string(e.Capability))
}

// Check refuses v, or an option that differs from its default and applies to v, when what it needs is not built. An option that does not apply to the verb changes nothing, as in criu, where drivers give the same options
// to dump and restore.
func (o *Options) Check(v Verb) error {
	for _, r := range Verbs {
		if r.Verb == v && !r.Needs.Built() {
			return &NotBuiltError{"criu " + r.Name, r.Needs}
		}
	}
	return o.checkOptions(v)
}

func (o *Options) checkOptions(v Verb) error {
	def := Default()
	for i := range Table {
		row := &Table[i]
		if row.Needs.Built() || row.Verbs&v == 0 {
			continue
		}
		if !reflect.DeepEqual(row.value(o), row.value(def)) {
			return &NotBuiltError{"--" + row.Long, row.Needs}
		}
	}
	return nil
}
