// Package options holds the one description of everything a user can ask of the tool.
//
// [Options] is the value that the verbs take. [Table] has one row an option: its spelling, help, argument, the verbs it
// applies to, its field in the RPC message and the capability it needs. Four front ends fill the same struct through the
// same rows: the command line ([Parse]), configuration files ([Options.ReadConfig]), the RPC message (internal/rpc) and a
// Go caller, who sets the fields directly, starting from [Default]. Whoever filled it, [Options.Check] is what refuses an
// option whose capability is not built yet.
//
// Spelling, defaults and precedence are criu 4.2's. The package touches no kernel interface but the configuration files.
package options

import (
	"math"

	"cryo/internal/actions"
)

// Options is what a user asks for. Take [Default] and change what differs: the zero value of several fields is not
// their default.
type Options struct {
	// Verb is what to do.
	Verb Verb

	// Tree is the pid of the root task to dump, as seen by the tool.
	Tree int
	// Final says what becomes of the tasks after the dump or restore: killed (dump) or running (restore) by default.
	Final FinalState
	// Detach leaves the restored tree on its own and returns, or, for the servers, runs in the background.
	Detach bool
	// Sibling makes the restored root task a child of the tool's parent.
	Sibling bool
	// ExecCmd is the command to become after a restore, so that it is the parent of the restored root task.
	ExecCmd []string
	// PidFile gets the pid of the restored root task or of the background server. It must not exist.
	PidFile string
	// StatusFD gets one zero byte when a server is ready, or before a dump to a page server starts; -1 means none.
	StatusFD int
	// CloseFDs are descriptors to close before anything else.
	CloseFDs []int
	// Timeout is the time in seconds that freezing the tree may take.
	Timeout uint
	// Unprivileged accepts the limits of a user that is not root.
	Unprivileged bool
	// Deprecated allows deprecated features.
	Deprecated bool
	// Libdir is where plugins are looked for.
	Libdir string

	// ImagesDir is the directory of the image set; "-" streams the set through standard output (dump) or
	// standard input (restore).
	ImagesDir string
	// WorkDir is where logs, pid files and statistics go; ImagesDir if empty.
	WorkDir string
	// ImagesDirFD and WorkDirFD are open directories that go before the names, or -1.
	ImagesDirFD, WorkDirFD int
	// PrevImagesDir is the set of the previous dump in a chain, relative to ImagesDir, or to WorkDir where the images are piped.
	PrevImagesDir string
	// ShardFDs are descriptors that a piped set is spread over.
	ShardFDs []int
	// Index is a directory for the page maps of a set that is piped, relative to the work directory: the next one can build on it.
	Index string
	// Stream moves the images through criu-image-streamer's sockets in ImagesDir.
	Stream bool
	// Sync puts the set on stable storage before it is declared valid.
	Sync bool
	// DryRun stops a dump after the frozen pass that lists all obstacles, and lets the tree go on.
	DryRun bool

	// LogFile is the name of the log in WorkDir; "-" is standard output, empty is standard error.
	LogFile string
	// LogPid writes the lines about a restored task to LogFile.PID.
	LogPid bool
	// LogToStderr keeps the log on standard error (RPC only).
	LogToStderr bool
	// Verbosity is 0 messages, 1 errors, 2 warnings, 3 information, 4 and more debug.
	Verbosity Verbosity
	// DisplayStats prints the statistics at the end.
	DisplayStats bool
	// ActionScripts are run at each phase; the last one given runs first, as criu does.
	ActionScripts []string
	// Graph prints the graph of stages of the verb instead of running it: "dot" or "mermaid".
	Graph Format
	// Trace shows the stages at work on standard error.
	Trace bool
	// TraceFile gets the trace in the format of Chrome and Perfetto.
	TraceFile string
	// Progress shows how far the work is, as a bar ("bar") or in lines of JSON ("json").
	Progress Format

	// TrackMem turns memory change tracking on.
	TrackMem bool
	// AutoDedup punches pages that a newer image of the chain has, or that are restored, out of the images.
	AutoDedup bool
	// PreDumpMode is how a pre-dump reads memory.
	PreDumpMode PreDumpMode
	// LazyPages restores memory on demand.
	LazyPages bool
	// Rounds is how often memory is sent at most while the tree runs.
	Rounds int
	// WorkingSet is a file with the memory that a lazy restore brings first, recorded where it is not there.
	WorkingSet string
	// PageServer sends pages to a page server at Address, Port or PageServerFD.
	PageServer bool
	// Address and Port name a page server or service; for `criu service` Address is the path of its socket.
	Address string
	// Port is a TCP port, 0 for none.
	Port int
	// PageServerFD is a connected socket to use in place of Address and Port, or -1.
	PageServerFD int

	// TLS protects the connection to a page server.
	TLS bool
	// TLSCACert, TLSCACRL, TLSCert and TLSKey are files; empty means criu's default place.
	TLSCACert, TLSCACRL, TLSCert, TLSKey string
	// TLSNoCNVerify skips the check of the server's name in its certificate.
	TLSNoCNVerify bool

	// ExtUnixSk allows UNIX sockets whose other end stays outside.
	ExtUnixSk ExtUnix
	// LinkRemap allows to link deleted files to a temporary name beside their old one.
	LinkRemap bool
	// FileLocks keeps file locks.
	FileLocks bool
	// EvasiveDevices opens a device by another path when its own cannot be reached.
	EvasiveDevices bool
	// Compress is how pages are compressed: "lz4", "zstd" or not at all.
	Compress Format
	// CompressRegion is how many bytes of pages are compressed together.
	CompressRegion Size
	// CompressAcceleration trades size for speed; 1 is as usual.
	CompressAcceleration int
	// ShareCOW stores pages that forked tasks share once.
	ShareCOW bool
	// Checksum puts checksums into a set, and demands them of one that is restored. Those that are there are compared anyway.
	Checksum bool
	// KeyFile is a file with the key that a set is encrypted with.
	KeyFile string
	// Key is what KeyFile holds, once it has been read; a Go caller may set it alone.
	Key []byte
	// GhostLimit is the largest deleted file in bytes whose content is put in the set.
	GhostLimit Size
	// GhostFiemap finds the holes of deleted files with FIEMAP.
	GhostFiemap bool
	// ForceIrmap resolves names of inotify and fanotify watches by scanning even if not needed.
	ForceIrmap bool
	// IrmapScanPaths are further places to scan for names of watched files.
	IrmapScanPaths []string
	// External are the objects that stay outside, in criu's notation, such as "file[MNT:INO]" or "mnt[PATH]:NAME".
	External []string
	// InheritFDs pairs descriptors of the tool with objects of the images.
	InheritFDs []InheritFD
	// FileValidation is how mapped and open files are recognised on restore.
	FileValidation FileValidation
	// SkipFileRWXCheck accepts files whose permission bits changed.
	SkipFileRWXCheck bool
	// ShellJob allows a tree whose session and terminal stay outside.
	ShellJob bool
	// OrphanPtsMaster hands a terminal without session leader to the RPC client (RPC only).
	OrphanPtsMaster bool

	// Root is the directory to become the root of the restored mount namespace.
	Root string
	// ExtMounts are mounts that come from outside, as key and value; key "auto" detects them.
	ExtMounts []KeyValue
	// ExtMountAuto finds external mounts by itself.
	ExtMountAuto bool
	// SkipMounts are mount points to leave out.
	SkipMounts []string
	// EnableFS are filesystem types to try although unsupported, or "all".
	EnableFS []string
	// ExtSharing and ExtMasters accept automatically found mounts that share or are slaves of mounts outside.
	ExtSharing, ExtMasters bool
	// JoinNS are existing namespaces to restore into.
	JoinNS []JoinNS
	// EmptyNS are the CLONE_NEW* flags of namespaces to make without content; only CLONE_NEWNET.
	EmptyNS EmptyNS
	// MntnsCompat restores mounts without MOVE_MOUNT_SET_GROUP.
	MntnsCompat bool
	// VethPairs are names inside and outside of virtual ethernet pairs.
	VethPairs []KeyValue

	// TCPEstablished keeps established TCP connections.
	TCPEstablished bool
	// SkipInFlight leaves out connections that are not accepted yet.
	SkipInFlight bool
	// TCPClose restores connections in closed state.
	TCPClose bool
	// NetworkLock is how packets are held back meanwhile.
	NetworkLock NetworkLock
	// WeakSysctls skips system controls that this kernel does not have.
	WeakSysctls bool

	// ManageCgroups is how much of the control groups is kept.
	ManageCgroups CgroupMode
	// CgroupRoots moves the root of a controller; key "" is for all others.
	CgroupRoots []KeyValue
	// CgroupProps describes in YAML the controllers and properties to keep; CgroupPropsFile is a file of it.
	CgroupProps, CgroupPropsFile string
	// CgroupDumpControllers limits the dump to these controllers.
	CgroupDumpControllers []string
	// CgroupYard is a directory where the hierarchies are mounted already.
	CgroupYard string
	// FreezeCgroup is the control group whose freezer stops the tree.
	FreezeCgroup string

	// CPUCap is what of the processor is written to or compared with the images.
	CPUCap CPUCap
	// LSMProfile is the security profile to restore with, as TYPE:NAME.
	LSMProfile string
	// LSMMountContext replaces the context of mounts that have one.
	LSMMountContext string
	// AllowUprobes accepts tasks that have the mapping of user probes.
	AllowUprobes bool

	// Features are the kernel features that `criu check` looks for; "list" prints their names.
	Features []string
	// Extra and Experimental add tiers of features to `criu check`.
	Extra, Experimental bool

	// Config is a configuration file read in place of the default ones.
	Config string
	// NoDefaultConfig leaves the default configuration files out.
	NoDefaultConfig bool
	// SwrkFD is the descriptor of the client that `criu swrk` serves.
	SwrkFD int
	// Help and Version print and leave.
	Help, Version bool
	// NotifyScripts tells the RPC client of each phase (RPC only).
	NotifyScripts bool
	// Client follows the work; nil: nobody does (RPC and Go callers).
	Client actions.Client `json:"-"`
	// ServiceSocket is the inode of the socket that an RPC client asked through, 0 for none. A dumped task may be that
	// client; when it is restored it finds the answer there.
	ServiceSocket uint64
	// PidfdStoreFD is the RPC client's socket that keeps pidfds between pre-dumps, or -1 (RPC only).
	PidfdStoreFD int

	execAsked bool // --exec-cmd was given; the words behind the verb are ExecCmd
	msAsked   bool // --ms was given
}

// Default returns options as they are when a user gives none.
func Default() *Options {
	return &Options{
		ImagesDir:      ".",
		StatusFD:       -1,
		ImagesDirFD:    -1,
		WorkDirFD:      -1,
		PageServerFD:   -1,
		PidfdStoreFD:   -1,
		Timeout:        10,
		Verbosity:      2,
		GhostLimit:     1 << 20,
		Rounds:         10,
		CompressRegion: 256 << 10,

		CompressAcceleration: 1,
		GhostFiemap:          true,
		FileValidation:       ValidateBuildID,
		ManageCgroups:        CgroupSoft,
		CPUCap:               CPUCapDefault,
	}
}

// Work is the work directory: WorkDir, or else the images directory, or else, where the images are piped, this one.
func (o *Options) Work() string {
	switch {
	case o.WorkDir != "":
		return o.WorkDir
	case o.ImagesDir == "-":
		return "."
	}
	return o.ImagesDir
}

// maxFD bounds descriptor numbers given by a user: the kernel's own are ints.
const maxFD = math.MaxInt32
