package rpc

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// noSubdirs is in criu's words, which drivers look for.
const noSubdirs = "No subdirs are allowed in log_file name"

// Client says what a request may ask for.
type Client struct {
	// Worker is true for the one client of `criu swrk`, which shares our descriptors and is our parent. A client of the
	// service may not pass descriptors by number, nor get tasks as its children.
	Worker bool
}

// Error is a field of a request that cannot be accepted.
type Error struct {
	Field, Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("request field %s: %s", e.Field, e.Reason) }

// FromRPC adds to options what a request for a verb asks for, through the table of the options. The configuration file that
// the request names is read last and overrides the request; one that is not there is as good as none. Descriptors in the
// result (ImagesDirFD, WorkDirFD, StatusFD, PidfdStoreFD) are numbers of the client.
func FromRPC(verb options.Verb, base *options.Options, req *rpc.CriuOpts, c Client) (*options.Options, error) {
	own := *base
	o := &own
	o.Verb, o.ImagesDir, o.LogFile = verb, "", "" // base's are not the client's
	if req == nil {
		return o, nil
	}
	done := map[string]bool{}
	for i := range options.Table {
		row := &options.Table[i]
		if row.RPC == "" || done[row.RPC] || special[row.RPC] != nil {
			continue
		}
		done[row.RPC] = true
		if err := plain(o, row, req); err != nil {
			return nil, &Error{row.RPC, err.Error()}
		}
	}
	for _, name := range specialOrder {
		if err := special[name](o, req, c); err != nil {
			return nil, &Error{name, err.Error()}
		}
	}
	if file := req.GetConfigFile(); file != "" {
		if err := override(o, file); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// override reads the configuration file of a request. What names a directory comes from the request or the file, never
// from both.
func override(o *options.Options, file string) error {
	images, work := o.ImagesDir, o.WorkDir
	o.ImagesDir, o.WorkDir = "", ""
	if err := o.ReadConfig(file, true); err != nil {
		return err
	}
	if o.ImagesDir == "" {
		o.ImagesDir = images
	} else {
		o.ImagesDirFD = -1
	}
	if o.WorkDir == "" {
		o.WorkDir = work
	} else {
		o.WorkDirFD = -1
	}
	return nil
}

// fieldOf finds a field of the message by its name in rpc.proto; it is a nil pointer or empty slice if it is not set.
func fieldOf(req *rpc.CriuOpts, name string) reflect.Value {
	var goName strings.Builder
	for part := range strings.SplitSeq(name, "_") {
		goName.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return reflect.ValueOf(req).Elem().FieldByName(goName.String())
}

// plain sets an option whose field says the same as its argument on the command line would.
func plain(o *options.Options, row *options.Option, req *rpc.CriuOpts) error {
	switch v := fieldOf(req, row.RPC).Interface().(type) {
	case *bool:
		if v != nil && (*v || row.Negatable || row.Arg == options.NoArg && isBool(o, row)) {
			return row.Set(o, "", false, !*v)
		}
	case *int32:
		if v != nil {
			return row.Set(o, strconv.FormatInt(int64(*v), 10), true, false)
		}
	case *uint32:
		if v != nil {
			return row.Set(o, strconv.FormatUint(uint64(*v), 10), true, false)
		}
	case *string:
		if v != nil {
			return row.Set(o, *v, true, false)
		}
	case []string:
		for _, s := range v {
			if err := row.Set(o, s, true, false); err != nil {
				return err
			}
		}
	default:
		panic(fmt.Sprintf("rpc: no conversion for %s of type %T", row.RPC, v))
	}
	return nil
}

// isBool: the option is a switch that a request may also turn off, though the command line cannot.
func isBool(o *options.Options, row *options.Option) bool {
	_, ok := row.Field(o).(*bool)
	return ok
}

// ints are the values of an enumeration, by its number.
type ints[T any] map[int32]T

func (m ints[T]) set(to *T, n int32) error {
	v, ok := m[n]
	if !ok {
		return fmt.Errorf("%d is none of its values", n)
	}
	*to = v
	return nil
}

var (
	cgroupModes = ints[options.CgroupMode]{
		int32(rpc.CriuCgMode_IGNORE):  options.CgroupIgnore,
		int32(rpc.CriuCgMode_CG_NONE): options.CgroupNone,
		int32(rpc.CriuCgMode_PROPS):   options.CgroupProps,
		int32(rpc.CriuCgMode_SOFT):    options.CgroupSoft,
		int32(rpc.CriuCgMode_FULL):    options.CgroupFull,
		int32(rpc.CriuCgMode_STRICT):  options.CgroupStrict,
		int32(rpc.CriuCgMode_DEFAULT): options.CgroupSoft,
	}
	preDumpModes = ints[options.PreDumpMode]{
		int32(rpc.CriuPreDumpMode_SPLICE):  options.PreDumpSplice,
		int32(rpc.CriuPreDumpMode_VM_READ): options.PreDumpRead,
	}
	networkLocks = ints[options.NetworkLock]{
		int32(rpc.CriuNetworkLockMethod_IPTABLES): options.LockIptables,
		int32(rpc.CriuNetworkLockMethod_NFTABLES): options.LockNftables,
		int32(rpc.CriuNetworkLockMethod_SKIP):     options.LockSkip,
	}
)

// special are the fields that are more than an argument, or that no option has.
var special = map[string]func(*options.Options, *rpc.CriuOpts, Client) error{
	"images_dir_fd": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.ImagesDirFd != nil {
			o.ImagesDirFD = int(*r.ImagesDirFd)
		}
		return nil
	},
	"work_dir_fd": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.WorkDirFd != nil {
			o.WorkDirFD = int(*r.WorkDirFd)
		}
		return nil
	},
	"log_file": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if strings.Contains(r.GetLogFile(), "/") {
			return fmt.Errorf("%s: %q", noSubdirs, r.GetLogFile())
		}
		o.LogFile = r.GetLogFile()
		return nil
	},
	"log_to_stderr": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		o.LogToStderr = r.GetLogToStderr()
		return nil
	},
	"notify_scripts": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		o.NotifyScripts = r.GetNotifyScripts()
		return nil
	},
	"orphan_pts_master": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		o.OrphanPtsMaster = r.GetOrphanPtsMaster()
		return nil
	},
	"pidfd_store_sk": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.PidfdStoreSk != nil {
			o.PidfdStoreFD = int(*r.PidfdStoreSk)
		}
		return nil
	},
	"ext_unix_sk": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if o.ExtUnixSk.Allow = r.GetExtUnixSk(); o.ExtUnixSk.Allow {
			for _, sk := range r.GetUnixSkIno() {
				o.ExtUnixSk.Inodes = append(o.ExtUnixSk.Inodes, uint64(sk.GetInode()))
			}
		}
		return nil
	},
	"ps": pageServer,
	"exec_cmd": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		o.ExecCmd = r.GetExecCmd()
		return nil
	},
	"rst_sibling": func(o *options.Options, r *rpc.CriuOpts, c Client) error {
		if o.Sibling = r.GetRstSibling(); o.Sibling && !c.Worker {
			return fmt.Errorf("a client of the service cannot have tasks as children: use criu swrk")
		}
		return nil
	},
	"inherit_fd": func(o *options.Options, r *rpc.CriuOpts, c Client) error {
		for _, fd := range r.GetInheritFd() {
			if !c.Worker {
				return fmt.Errorf("a client of the service has no descriptors with us: use criu swrk")
			}
			if fd.GetFd() < 0 || fd.GetKey() == "" {
				return fmt.Errorf("descriptor %d for %q", fd.GetFd(), fd.GetKey())
			}
			o.InheritFDs = append(o.InheritFDs, options.InheritFD{FD: int(fd.GetFd()), Key: fd.GetKey()})
		}
		return nil
	},
	"veths": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		for _, v := range r.GetVeths() {
			o.VethPairs = append(o.VethPairs, options.KeyValue{Key: v.GetIfIn(), Value: v.GetIfOut()})
		}
		return nil
	},
	"ext_mnt": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		for _, m := range r.GetExtMnt() {
			o.ExtMounts = append(o.ExtMounts, options.KeyValue{Key: m.GetKey(), Value: m.GetVal()})
		}
		o.ExtMountAuto = r.GetAutoExtMnt()
		return nil
	},
	"cg_root": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		for _, c := range r.GetCgRoot() {
			o.CgroupRoots = append(o.CgroupRoots, options.KeyValue{Key: c.GetCtrl(), Value: c.GetPath()})
		}
		return nil
	},
	"join_ns": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		for _, j := range r.GetJoinNs() {
			o.JoinNS = append(o.JoinNS, options.JoinNS{NS: j.GetNs(), File: j.GetNsFile(), Extra: j.GetExtraOpt()})
		}
		return nil
	},
	"cpu_cap": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.CpuCap != nil {
			o.CPUCap = options.CPUCap(*r.CpuCap)&options.CPUCapAll | options.CPUCapImage
		}
		return nil
	},
	"empty_ns": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.GetEmptyNs()&^unix.CLONE_NEWNET != 0 {
			return fmt.Errorf("%#x: only network namespaces can be left empty", r.GetEmptyNs())
		}
		o.EmptyNS = options.EmptyNS(r.GetEmptyNs())
		return nil
	},
	"manage_cgroups_mode": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.ManageCgroups != nil { // clients older than the modes
			o.ManageCgroups = options.CgroupIgnore
			if *r.ManageCgroups {
				o.ManageCgroups = options.CgroupSoft
			}
		}
		if r.ManageCgroupsMode == nil {
			return nil
		}
		return cgroupModes.set(&o.ManageCgroups, int32(*r.ManageCgroupsMode))
	},
	"pre_dump_mode": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.PreDumpMode == nil {
			return nil
		}
		return preDumpModes.set(&o.PreDumpMode, int32(*r.PreDumpMode))
	},
	"network_lock": func(o *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.NetworkLock == nil {
			return nil
		}
		return networkLocks.set(&o.NetworkLock, int32(*r.NetworkLock))
	},
	"image_io_mode": func(_ *options.Options, r *rpc.CriuOpts, _ Client) error {
		if r.ImageIoMode != nil && int32(*r.ImageIoMode) != 0 {
			return fmt.Errorf("direct I/O of images: not built yet in this version")
		}
		return nil
	},
}

// specialOrder is the order in which special fields are looked at, so that refusals do not depend on chance.
var specialOrder = func() []string {
	var names []string
	for name := range special {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}()

// pageServer: a lazy restore has its own use of the port, and passes no address.
func pageServer(o *options.Options, r *rpc.CriuOpts, c Client) error {
	ps := r.GetPs()
	if ps == nil {
		return nil
	}
	if ps.GetPort() < 0 || ps.GetPort() > 65535 {
		return fmt.Errorf("%d is no port", ps.GetPort())
	}
	o.Port = int(ps.GetPort())
	if r.GetLazyPages() {
		return nil
	}
	o.PageServer, o.Address = true, ps.GetAddress()
	if ps.Fd != nil {
		if !c.Worker {
			return fmt.Errorf("a client of the service has no descriptors with us: use criu swrk")
		}
		o.PageServerFD = int(*ps.Fd)
	}
	return nil
}
