package options

import "reflect"

// ArgMode says whether an option has an argument.
type ArgMode int

// The argument modes.
const (
	NoArg ArgMode = iota
	RequiredArg
	OptionalArg // only attached: --opt=arg, -oarg
)

// Option is one row of the table.
type Option struct {
	Long      string
	Short     byte // 0 for none
	Arg       ArgMode
	ArgName   string // as help shows it
	Negatable bool   // has a --no- form
	Section   Section
	Verbs     Verb   // the verbs it changes something for
	RPC       string // field of criu_opts, empty if it has none
	Needs     Capability
	Own       bool // not one of criu's: a prefix never means it where it may mean one of criu's
	Help      string

	// field gives the option's place: *bool, *string, *[]string, *uint or a Value.
	field func(*Options) any
	// watch gives what to compare with the default, where that is not the field.
	watch func(*Options) any
}

// value returns what the option sets, to be compared with the default.
func (r *Option) value(o *Options) any {
	if r.watch != nil {
		return r.watch(o)
	}
	return reflect.ValueOf(r.field(o)).Elem().Interface()
}

// Field returns a pointer to the option's field of o, or the Value that sets it.
func (r *Option) Field(o *Options) any { return r.field(o) }

// Section is a part of the help.
type Section string

// The sections of the help, in order.
const (
	secTasks    Section = "Tasks"
	secImages   Section = "Images"
	secLog      Section = "Log and observation"
	secMemory   Section = "Memory"
	secFiles    Section = "Files and sockets"
	secOutside  Section = "Objects outside the tree"
	secMounts   Section = "Mounts and namespaces"
	secNetwork  Section = "Network"
	secCgroups  Section = "Control groups"
	secSecurity Section = "Processor and security"
	secServer   Section = "Page server and service"
	secCheck    Section = "Kernel check"
	secConfig   Section = "Configuration"
	secOther    Section = "Other"
)

var sections = []Section{
	secTasks, secImages, secLog, secMemory, secFiles, secOutside, secMounts, secNetwork, secCgroups, secSecurity,
	secServer, secCheck, secConfig, secOther,
}

// flag is a negatable bool; its place is given by f.
func flag(s Section, long string, v Verb, rpc string, n Capability, help string, f func(*Options) *bool) Option {
	return Option{Long: long, Negatable: true, Section: s, Verbs: v, RPC: rpc, Needs: n, Help: help,
		field: func(o *Options) any { return f(o) }}
}

// short gives an option its one-letter form.
func (r Option) short(c byte) Option { r.Short = c; return r }

// plain takes away the --no- form.
func (r Option) plain() Option { r.Negatable = false; return r }

// own marks an option that criu does not have.
func (r Option) own() Option { r.Own = true; return r }

// text is an option with a required argument, kept in a string, a list of strings, a number or a Value.
func text(s Section, long, arg string, v Verb, rpc string, n Capability, help string, f func(*Options) any) Option {
	return Option{Long: long, Arg: RequiredArg, ArgName: arg, Section: s, Verbs: v, RPC: rpc, Needs: n, Help: help, field: f}
}

// maybe makes the argument optional.
func (r Option) maybe() Option { r.Arg = OptionalArg; return r }

// watching says what to compare with the default.
func (r Option) watching(f func(*Options) any) Option { r.watch = f; return r }

// also makes a bool option set a second field.
func (r Option) also(f func(*Options) *bool) Option {
	first := r.field
	r.field = func(o *Options) any { return both{first(o).(*bool), f(o)} }
	return r.watching(func(o *Options) any { return *first(o).(*bool) })
}

// final is one of the options that share the final state.
func final(long string, short byte, v Verb, rpc, help string, state FinalState) Option {
	return Option{Long: long, Short: short, Section: secTasks, Verbs: v, RPC: rpc, Help: help,
		field: func(o *Options) any { return finalFlag{&o.Final, state} },
		watch: func(o *Options) any { return o.Final }}
}

// Table has one row an option, in the order of the help.
var Table = []Option{
	text(secTasks, "tree", "PID", dumping, "pid", Core, "root of the process tree to dump",
		func(o *Options) any { return bounded{&o.Tree, 1, maxFD, "pid"} }).short('t').
		watching(func(o *Options) any { return o.Tree }),
	final("leave-running", 'R', moving, "leave_running", "let the tasks go on after the dump", LeaveRunning),
	final("leave-stopped", 's', moving, "leave_stopped", "leave the tasks stopped after dump or restore", LeaveStopped),
	flag(secTasks, "restore-detached", restoring|serving, "", Core, "return as soon as the tree is restored",
		func(o *Options) *bool { return &o.Detach }).short('d'),
	flag(secTasks, "restore-sibling", restoring, "rst_sibling", Core, "make the restored root a child of our parent",
		func(o *Options) *bool { return &o.Sibling }).short('S'),
	flag(secTasks, "exec-cmd", Restore, "exec_cmd", Core,
		"after the restore become the command given behind '--', as parent of the restored root",
		func(o *Options) *bool { return &o.execAsked }).plain(),
	flag(secTasks, "shell-job", moving, "shell_job", Terminals,
		"accept a tree whose session and terminal belong to a shell outside",
		func(o *Options) *bool { return &o.ShellJob }).short('j'),
	text(secTasks, "freeze-cgroup", "PATH", dumping, "freeze_cgroup", CgFreezer,
		"stop the tree by the freezer of this control group",
		func(o *Options) any { return &o.FreezeCgroup }),
	text(secTasks, "timeout", "SECONDS", dumping, "timeout", Core, "time that stopping the tree may take (default 10)",
		func(o *Options) any { return &o.Timeout }),
	text(secTasks, "action-script", "FILE", anyVerb, "", Core, "run FILE at each phase; CRTOOLS_SCRIPT_ACTION names it",
		func(o *Options) any { return &o.ActionScripts }),
	text(secTasks, "pidfile", "FILE", restoring|serving, "", Core, "write the pid of the restored root or of the server to FILE",
		func(o *Options) any { return &o.PidFile }),
	flag(secTasks, "unprivileged", anyVerb, "unprivileged", Core, "accept the limits of a user who is not root",
		func(o *Options) *bool { return &o.Unprivileged }),
	flag(secTasks, "dry-run", Dump, "", DryRunning, "list everything that stands in the way of a dump, and change nothing",
		func(o *Options) *bool { return &o.DryRun }).own(),

	text(secImages, "images-dir", "DIR", imageVerb, "images_dir", Core,
		"directory of the image set (default: here); '-' pipes it",
		func(o *Options) any { return &o.ImagesDir }).short('D'),
	text(secImages, "work-dir", "DIR", anyVerb, "", Core, "directory for logs, pid files and statistics (default: images)",
		func(o *Options) any { return &o.WorkDir }).short('W'),
	text(secImages, "prev-images-dir", "DIR", moving|PageServer|Extract, "parent_img", Incremental,
		"the previous set of a chain, relative to the images, or to the work directory where they are piped",
		func(o *Options) any { return &o.PrevImagesDir }),
	text(secImages, "index", "DIR", Dump|PreDump, "", Incremental,
		"of a set that is piped keep in DIR what the next one needs that names it by --prev-images-dir",
		func(o *Options) any { return &o.Index }).own(),
	text(secImages, "shard-fds", "FD,FD,...", Dump|PreDump|Restore|Extract, "", Streamer,
		"pipe the set through these descriptors side by side, in place of standard output or input",
		func(o *Options) any { return fdsList{&o.ShardFDs} }).own().watching(func(o *Options) any { return o.ShardFDs }),
	flag(secImages, "stream", moving|CPUInfoDump, "", Streamer, "move the images through criu-image-streamer",
		func(o *Options) *bool { return &o.Stream }),
	text(secImages, "compress", "lz4|zstd", dumping, "", Compression, "compress pages: by lz4 (default; criu after 4.2 reads it) or zstd",
		func(o *Options) any { return formatFlag{&o.Compress, []string{"lz4", "zstd"}} }).short('c').maybe().own().
		watching(func(o *Options) any { return o.Compress }),
	text(secImages, "compress-region", "SIZE", dumping, "", Compression, "compress so many bytes together (default 256K, at most 4M)",
		func(o *Options) any { return &o.CompressRegion }).own(),
	text(secImages, "compress-acceleration", "N", dumping, "", Compression, "compress by lz4 faster and worse (1: as usual)",
		func(o *Options) any { return bounded{&o.CompressAcceleration, 1, 1 << 16, "acceleration"} }).own(),
	flag(secImages, "share-cow", Dump, "", Dedups, "store pages that forked tasks share once; only this program restores that",
		func(o *Options) *bool { return &o.ShareCOW }).own(),
	flag(secImages, "checksum", dumping|restoring|LazyPages, "", Integrity, "put checksums into the set; refuse to restore one that has none",
		func(o *Options) *bool { return &o.Checksum }).own(),
	text(secImages, "key-file", "FILE", dumping|restoring|LazyPages, "", Integrity,
		"encrypt and authenticate the set with the bytes of FILE (/dev/fd/N: a descriptor)",
		func(o *Options) any { return &o.KeyFile }).own(),
	flag(secImages, "sync", dumping|PageServer|Receive|Extract, "", Syncing, "put the set on stable storage before it counts as valid",
		func(o *Options) *bool { return &o.Sync }).own(),

	text(secLog, "log-file", "FILE", anyVerb, "log_file", Core, "log to FILE in the work directory; '-' is standard output",
		func(o *Options) any { return &o.LogFile }).short('o'),
	flag(secLog, "log-pid", restoring, "", Core, "log about each restored task to FILE.PID",
		func(o *Options) *bool { return &o.LogPid }),
	text(secLog, "verbosity", "N", anyVerb, "log_level", Core,
		"-v, -vv, -v4: 1 errors, 2 warnings (default), 3 information, 4 debug",
		func(o *Options) any { return &o.Verbosity }).short('v').maybe(),
	flag(secLog, "display-stats", moving, "display_stats", Core, "print the statistics at the end",
		func(o *Options) *bool { return &o.DisplayStats }),
	text(secLog, "progress", "json", moving, "", Tracing, "show the progress as a bar, or as lines of JSON",
		func(o *Options) any { return formatFlag{&o.Progress, []string{"bar", "json"}} }).maybe().own().
		watching(func(o *Options) any { return o.Progress }),
	text(secLog, "graph", "dot|mermaid", moving, "", Tracing, "print the graph of stages of the command, and do nothing else",
		func(o *Options) any { return formatFlag{&o.Graph, []string{"dot", "mermaid"}} }).maybe().own().
		watching(func(o *Options) any { return o.Graph }),
	flag(secLog, "trace", moving, "", Tracing, "show the stages at work",
		func(o *Options) *bool { return &o.Trace }).own(),
	text(secLog, "trace-file", "FILE", moving, "", Tracing, "write a trace for Chrome or Perfetto to FILE",
		func(o *Options) any { return &o.TraceFile }).own(),

	flag(secMemory, "track-mem", dumping, "track_mem", Incremental, "follow changes of memory from this dump on",
		func(o *Options) *bool { return &o.TrackMem }),
	flag(secMemory, "auto-dedup", moving|PageServer, "auto_dedup", Dedups,
		"punch pages out of older images once newer ones hold them, or once restored",
		func(o *Options) *bool { return &o.AutoDedup }),
	text(secMemory, "pre-dump-mode", "splice|read", PreDump, "pre_dump_mode", Incremental,
		"accepted for criu's sake: pages are always read from outside while tasks run",
		func(o *Options) any { return &o.PreDumpMode }),
	flag(secMemory, "lazy-pages", moving|PageServer, "lazy_pages", Lazy,
		"restore memory when it is touched; 'criu lazy-pages' serves it",
		func(o *Options) *bool { return &o.LazyPages }).plain(),
	text(secMemory, "rounds", "N", Migrate, "", Incremental, "send memory at most N times while the tree runs (default 10)",
		func(o *Options) any { return bounded{&o.Rounds, 0, 1000, "number of rounds"} }).own().
		watching(func(o *Options) any { return o.Rounds }),
	text(secMemory, "working-set", "FILE", Restore|LazyPages, "", Lazy,
		"bring memory in FILE first; record what is wanted first there if it is not",
		func(o *Options) any { return &o.WorkingSet }).own(),
	flag(secMemory, "page-server", dumping|LazyPages, "ps", PageServing, "send pages to a page server",
		func(o *Options) *bool { return &o.PageServer }),

	text(secFiles, "ext-unix-sk", "INODE", moving, "ext_unix_sk", UnixSockets, "accept UNIX sockets with their other end outside",
		func(o *Options) any { return &o.ExtUnixSk }).short('x').maybe(),
	flag(secFiles, "link-remap", moving, "link_remap", Ghosts, "link a deleted file to a temporary name beside its old one",
		func(o *Options) *bool { return &o.LinkRemap }),
	text(secFiles, "ghost-limit", "SIZE", dumping, "ghost_limit", Ghosts, "largest deleted file to put in the set (default 1M)",
		func(o *Options) any { return &o.GhostLimit }),
	flag(secFiles, "ghost-fiemap", dumping, "", Ghosts, "find holes of deleted files by FIEMAP (default)",
		func(o *Options) *bool { return &o.GhostFiemap }),
	flag(secFiles, "file-locks", moving, "file_locks", Locks, "keep file locks; right for containers only",
		func(o *Options) *bool { return &o.FileLocks }).short('l'),
	text(secFiles, "file-validation", "METHOD", moving, "", Validation, "recognise files by 'filesize' or 'buildid' (default)",
		func(o *Options) any { return &o.FileValidation }),
	flag(secFiles, "skip-file-rwx-check", restoring, "skip_file_rwx_check", Validation, "accept files whose permissions changed",
		func(o *Options) *bool { return &o.SkipFileRWXCheck }),
	flag(secFiles, "evasive-devices", moving, "evasive_devices", Devices, "open a device by any path that leads to it",
		func(o *Options) *bool { return &o.EvasiveDevices }),
	flag(secFiles, "force-irmap", dumping, "force_irmap", Notify, "look names of watched files up by scanning",
		func(o *Options) *bool { return &o.ForceIrmap }),
	text(secFiles, "irmap-scan-path", "PATH", dumping, "irmap_scan_paths", Notify, "scan here too for names of watched files",
		func(o *Options) any { return &o.IrmapScanPaths }),

	text(secOutside, "external", "RES", moving, "external", ExternalRes,
		"RES is not ours: on dump tty[RDEV:DEV], file[MNT:INO], dev[MAJ/MIN]:NAME, unix[INO], mnt[PATH]:NAME, mnt[]:FLAGS, "+
			"net[INO]:NAME, pid[INO]:NAME; on restore dev[NAME]:PATH, veth[IN]:OUT@BRIDGE, macvlan[IN]:OUT, mnt[NAME]:PATH, "+
			"netdev[IN]:OUT",
		func(o *Options) any { return &o.External }),
	text(secOutside, "inherit-fd", "fd[N]:RES", restoring, "inherit_fd", Inherit,
		"our descriptor N is RES of the images: tty[RDEV:DEV], pipe:[INO], socket:[INO], file[MNT:INO], /memfd:NAME or a path",
		func(o *Options) any { return inheritList{&o.InheritFDs} }).watching(func(o *Options) any { return o.InheritFDs }),

	text(secMounts, "root", "DIR", moving, "root", Mounts, "root of the filesystem of the restored mount namespace",
		func(o *Options) any { return &o.Root }).short('r'),
	text(secMounts, "ext-mount-map", "KEY:VALUE", moving, "ext_mnt", Mounts, "map a mount outside; 'auto' finds them",
		func(o *Options) any {
			return pairList{&o.ExtMounts, ":", func(arg string) error { return setAuto(&o.ExtMountAuto, arg) }}
		}).short('M').watching(func(o *Options) any { return extMounts{o.ExtMounts, o.ExtMountAuto} }),
	text(secMounts, "skip-mnt", "PATH", moving, "skip_mnt", Mounts, "leave this mount point out",
		func(o *Options) any { return &o.SkipMounts }),
	text(secMounts, "enable-fs", "NAMES", moving, "enable_fs", Mounts, "try these filesystem types ('all') though unsupported",
		func(o *Options) any { return commaList{&o.EnableFS} }).watching(func(o *Options) any { return o.EnableFS }),
	flag(secMounts, "enable-external-sharing", moving, "ext_sharing", Mounts, "accept found mounts that share with outside",
		func(o *Options) *bool { return &o.ExtSharing }).plain(),
	flag(secMounts, "enable-external-masters", moving, "ext_masters", Mounts, "accept found mounts that follow outside",
		func(o *Options) *bool { return &o.ExtMasters }).plain(),
	flag(secMounts, "mntns-compat-mode", restoring, "mntns_compat_mode", Mounts, "restore mounts the way old kernels allow",
		func(o *Options) *bool { return &o.MntnsCompat }),
	text(secMounts, "join-ns", "NS:PID|FILE", restoring, "join_ns", NetNS,
		"restore into an existing namespace; user:FILE,UID,GID for user namespaces",
		func(o *Options) any { return joinList{&o.JoinNS} }).short('J').watching(func(o *Options) any { return o.JoinNS }),
	text(secMounts, "empty-ns", "net", moving, "empty_ns", Namespaces, "make the namespace, leave its content to action scripts",
		func(o *Options) any { return &o.EmptyNS }),

	flag(secNetwork, "tcp-established", moving, "tcp_established", TCP, "keep established TCP connections",
		func(o *Options) *bool { return &o.TCPEstablished }),
	flag(secNetwork, "skip-in-flight", moving, "tcp_skip_in_flight", TCP, "leave connections out that are not accepted yet",
		func(o *Options) *bool { return &o.SkipInFlight }),
	flag(secNetwork, "tcp-close", moving, "tcp_close", TCP, "restore TCP connections closed",
		func(o *Options) *bool { return &o.TCPClose }),
	text(secNetwork, "network-lock", "METHOD", dumping, "network_lock", TCP,
		"hold packets back by 'iptables' (default), 'nftables' or not ('skip')",
		func(o *Options) any { return &o.NetworkLock }),
	text(secNetwork, "veth-pair", "IN=OUT", restoring, "veths", Namespaces, "name outside of a virtual ethernet device inside",
		func(o *Options) any { return pairList{&o.VethPairs, "=", nil} }).watching(func(o *Options) any { return o.VethPairs }),
	flag(secNetwork, "weak-sysctls", restoring, "weak_sysctls", NetNS, "skip system controls that this kernel lacks",
		func(o *Options) *bool { return &o.WeakSysctls }),

	text(secCgroups, "manage-cgroups", "MODE", moving, "manage_cgroups_mode", Cgroups,
		"'none', 'props', 'soft' (default), 'full', 'strict' or 'ignore'",
		func(o *Options) any { return &o.ManageCgroups }).maybe(),
	text(secCgroups, "cgroup-root", "[CTL:]/DIR", moving, "cg_root", Cgroups, "move the root of a controller, or of all",
		func(o *Options) any {
			return pairList{&o.CgroupRoots, ":", func(arg string) error { return addRoot(&o.CgroupRoots, arg) }}
		}).watching(func(o *Options) any { return o.CgroupRoots }),
	text(secCgroups, "cgroup-props", "YAML", moving, "cgroup_props", Cgroups, "controllers and properties to keep",
		func(o *Options) any { return &o.CgroupProps }),
	text(secCgroups, "cgroup-props-file", "FILE", moving, "cgroup_props_file", Cgroups, "the same from a file",
		func(o *Options) any { return &o.CgroupPropsFile }),
	text(secCgroups, "cgroup-dump-controller", "NAME", moving, "cgroup_dump_controller", Cgroups, "keep this controller, skip the others",
		func(o *Options) any { return &o.CgroupDumpControllers }),
	text(secCgroups, "cgroup-yard", "DIR", moving, "cgroup_yard", Cgroups, "where the hierarchies are mounted already",
		func(o *Options) any { return &o.CgroupYard }),

	text(secSecurity, "cpu-cap", "LIST", moving|CPUInfoDump|CPUInfoCheck, "cpu_cap", Core,
		"what of the processor must match: cpu, fpu, ins, all, none, ^ turns round (default fpu,ins)",
		func(o *Options) any { return &o.CPUCap }).maybe(),
	text(secSecurity, "lsm-profile", "TYPE:NAME", restoring, "lsm_profile", LSM, "restore under this apparmor or selinux profile",
		func(o *Options) any { return &o.LSMProfile }),
	text(secSecurity, "lsm-mount-context", "CTX", restoring, "lsm_mount_context", LSM, "replace the context of mounts that have one",
		func(o *Options) any { return &o.LSMMountContext }),
	flag(secSecurity, "allow-uprobes", moving, "", Uprobes, "accept tasks that carry the mapping of user probes",
		func(o *Options) *bool { return &o.AllowUprobes }),

	text(secServer, "address", "ADDR", dumping|serving, "ps", PageServing, "address of the page server, or socket of the service",
		func(o *Options) any { return &o.Address }),
	text(secServer, "port", "PORT", dumping|serving, "ps", PageServing, "port of the page server",
		func(o *Options) any { return bounded{&o.Port, 1, 65535, "port"} }).watching(func(o *Options) any { return o.Port }),
	text(secServer, "ps-socket", "FD", dumping|PageServer|LazyPages, "ps", PageServing, "connected socket in place of address and port",
		func(o *Options) any { return bounded{&o.PageServerFD, 0, maxFD, "descriptor number"} }).
		watching(func(o *Options) any { return o.PageServerFD }),
	flag(secServer, "daemon", serving, "", Core, "go to the background once the socket is there",
		func(o *Options) *bool { return &o.Detach }),
	text(secServer, "status-fd", "FD", Dump|serving, "status_fd", Core, "write \\0 to FD and close it when ready",
		func(o *Options) any { return bounded{&o.StatusFD, 0, maxFD, "descriptor number"} }).
		watching(func(o *Options) any { return o.StatusFD }),
	flag(secServer, "tls", dumping|PageServer|LazyPages|Receive, "tls", TLSWire, "protect the connection by TLS",
		func(o *Options) *bool { return &o.TLS }),
	text(secServer, "tls-cacert", "FILE", dumping|PageServer|LazyPages|Receive, "tls_cacert", TLSWire, "trust certificates of this authority only",
		func(o *Options) any { return &o.TLSCACert }),
	text(secServer, "tls-cacrl", "FILE", dumping|PageServer|LazyPages|Receive, "tls_cacrl", TLSWire, "revocation list of the authority",
		func(o *Options) any { return &o.TLSCACRL }),
	text(secServer, "tls-cert", "FILE", dumping|PageServer|LazyPages|Receive, "tls_cert", TLSWire, "our certificate",
		func(o *Options) any { return &o.TLSCert }),
	text(secServer, "tls-key", "FILE", dumping|PageServer|LazyPages|Receive, "tls_key", TLSWire, "key of our certificate",
		func(o *Options) any { return &o.TLSKey }),
	flag(secServer, "tls-no-cn-verify", dumping|PageServer|LazyPages|Receive, "tls_no_cn_verify", TLSWire, "do not compare the server's name",
		func(o *Options) *bool { return &o.TLSNoCNVerify }).plain(),

	text(secCheck, "feature", "NAME", Check, "", Core, "look for this feature only; 'list' names them all",
		func(o *Options) any { return &o.Features }),
	flag(secCheck, "extra", Check, "", Core, "also features that only some dumps need",
		func(o *Options) *bool { return &o.Extra }),
	flag(secCheck, "experimental", Check, "", Core, "also features that are experimental",
		func(o *Options) *bool { return &o.Experimental }),
	flag(secCheck, "all", Check, "", Core, "both --extra and --experimental",
		func(o *Options) *bool { return &o.Extra }).plain().also(func(o *Options) *bool { return &o.Experimental }),
	flag(secCheck, "ms", Check, "", Never, "refused: it asked for what a plain 'criu check' does",
		func(o *Options) *bool { return &o.msAsked }).plain(),

	text(secConfig, "config", "FILE", anyVerb, "config_file", Core, "read FILE in place of the default configuration",
		func(o *Options) any { return &o.Config }),
	flag(secConfig, "no-default-config", anyVerb, "", Core, "read no default configuration file",
		func(o *Options) *bool { return &o.NoDefaultConfig }).plain(),

	text(secOther, "close", "FD", anyVerb, "", Core, "close this descriptor before anything else",
		func(o *Options) any { return fdList{&o.CloseFDs} }).watching(func(o *Options) any { return o.CloseFDs }),
	text(secOther, "libdir", "DIR", moving, "", Plugins, "directory of plugins",
		func(o *Options) any { return &o.Libdir }).short('L'),
	flag(secOther, "deprecated", anyVerb, "", Core, "allow what is deprecated (nothing is, as yet)",
		func(o *Options) *bool { return &o.Deprecated }),
	flag(secOther, "help", anyVerb, "", Core, "show this text",
		func(o *Options) *bool { return &o.Help }).short('h').plain(),
	flag(secOther, "version", anyVerb, "", Core, "show the version",
		func(o *Options) *bool { return &o.Version }).short('V').plain(),
}
