package rpc

import (
	"reflect"
	"strings"
	"testing"

	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func ptr[T any](v T) *T { return &v }

// Every field of the message is converted by a row of the table or by a special function.
func TestEveryFieldIsConverted(t *testing.T) {
	known := map[string]bool{}
	for _, row := range options.Table {
		if row.RPC == "" {
			continue
		}
		if !fieldOf(&rpc.CriuOpts{}, row.RPC).IsValid() {
			t.Errorf("--%s: criu_opts has no field %s", row.Long, row.RPC)
		}
		known[row.RPC] = true
	}
	for name := range special {
		if !fieldOf(&rpc.CriuOpts{}, name).IsValid() {
			t.Errorf("criu_opts has no field %s", name)
		}
		known[name] = true
	}
	for _, aside := range []string{"manage_cgroups", "auto_ext_mnt", "unix_sk_ino"} { // seen to by their newer field
		known[aside] = true
	}
	typ := reflect.TypeFor[rpc.CriuOpts]()
	for i := range typ.NumField() {
		for part := range strings.SplitSeq(typ.Field(i).Tag.Get("protobuf"), ",") {
			if name, ok := strings.CutPrefix(part, "name="); ok && !known[name] {
				t.Errorf("field %s is not converted", name)
			}
		}
	}
}

func TestFromRPC(t *testing.T) {
	for name, tc := range map[string]struct {
		verb options.Verb
		req  *rpc.CriuOpts
		want func(*options.Options)
	}{
		"nothing": {options.Dump, nil, func(*options.Options) {}},
		"runc dumps": {options.Dump, &rpc.CriuOpts{
			ImagesDirFd: ptr(int32(4)), WorkDirFd: ptr(int32(5)), LogLevel: ptr(int32(4)), LogFile: ptr("dump.log"),
			Root: ptr("/r"), ManageCgroups: ptr(true), NotifyScripts: ptr(true), Pid: ptr(int32(77)), ShellJob: ptr(true),
			LeaveRunning: ptr(true), TcpEstablished: ptr(false), LinkRemap: ptr(true), ExtUnixSk: ptr(true),
			FileLocks: ptr(false), OrphanPtsMaster: ptr(true), External: []string{"net[1]:x"}, FreezeCgroup: ptr("/cg"),
			ConfigFile: ptr("/nowhere/runc.conf"), ManageCgroupsMode: ptr(rpc.CriuCgMode_STRICT),
		}, func(o *options.Options) {
			o.ImagesDirFD, o.WorkDirFD, o.Verbosity, o.LogFile, o.Root, o.ManageCgroups = 4, 5, 4, "dump.log", "/r", options.CgroupStrict
			o.NotifyScripts, o.Tree, o.ShellJob, o.Final, o.LinkRemap = true, 77, true, options.LeaveRunning, true
			o.ExtUnixSk.Allow, o.OrphanPtsMaster, o.External, o.FreezeCgroup = true, true, []string{"net[1]:x"}, "/cg"
		}},
		"runc restores": {options.Restore, &rpc.CriuOpts{
			EvasiveDevices: ptr(true), RstSibling: ptr(true), Root: ptr("/criu-root"),
			InheritFd: []*rpc.InheritFd{{Key: ptr("pipe:[9]"), Fd: ptr(int32(4))}},
			JoinNs:    []*rpc.JoinNamespace{{Ns: ptr("ipc"), NsFile: ptr("/proc/1/ns/ipc")}},
			ExtMnt:    []*rpc.ExtMountMap{{Key: ptr("/etc/hosts"), Val: ptr("/h")}},
			Veths:     []*rpc.CriuVethPair{{IfIn: ptr("eth0"), IfOut: ptr("v0")}},
			CgRoot:    []*rpc.CgroupRoot{{Ctrl: ptr("cpu"), Path: ptr("/c")}}, EmptyNs: ptr(uint32(0x40000000)),
		}, func(o *options.Options) {
			o.EvasiveDevices, o.Sibling, o.Root, o.EmptyNS = true, true, "/criu-root", 0x40000000
			o.InheritFDs = []options.InheritFD{{FD: 4, Key: "pipe:[9]"}}
			o.JoinNS = []options.JoinNS{{NS: "ipc", File: "/proc/1/ns/ipc"}}
			o.ExtMounts = []options.KeyValue{{Key: "/etc/hosts", Value: "/h"}}
			o.VethPairs = []options.KeyValue{{Key: "eth0", Value: "v0"}}
			o.CgroupRoots = []options.KeyValue{{Key: "cpu", Value: "/c"}}
		}},
		"pre-dump to a page server": {options.PreDump, &rpc.CriuOpts{
			Ps: &rpc.CriuPageServerInfo{Fd: ptr(int32(9)), Port: ptr(int32(1234))}, TrackMem: ptr(true),
			ParentImg: ptr("../1"), PreDumpMode: ptr(rpc.CriuPreDumpMode_VM_READ), GhostLimit: ptr(uint32(5)),
			Timeout: ptr(uint32(3)), NetworkLock: ptr(rpc.CriuNetworkLockMethod_SKIP), CpuCap: ptr(^uint32(0)),
		}, func(o *options.Options) {
			o.PageServer, o.PageServerFD, o.Port, o.TrackMem, o.PrevImagesDir = true, 9, 1234, true, "../1"
			o.PreDumpMode, o.GhostLimit, o.Timeout, o.NetworkLock = options.PreDumpRead, 5, 3, options.LockSkip
			o.CPUCap = options.CPUCapAll | options.CPUCapImage
		}},
	} {
		want := options.Default()
		want.Verb, want.ImagesDir = tc.verb, ""
		tc.want(want)
		got, err := FromRPC(tc.verb, options.Default(), tc.req, Client{Worker: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got.Config = ""
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(options.Options{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s: -want +got\n%s", name, d)
		}
	}
}

func TestFromRPCRefuses(t *testing.T) {
	for want, req := range map[string]*rpc.CriuOpts{
		"request field rst_sibling": {RstSibling: ptr(true)},
		"request field inherit_fd":  {InheritFd: []*rpc.InheritFd{{Key: ptr("x"), Fd: ptr(int32(1))}}},
		"request field ps":          {Ps: &rpc.CriuPageServerInfo{Fd: ptr(int32(1))}},
		"request field empty_ns":    {EmptyNs: ptr(uint32(1))},
		"request field log_file":    {LogFile: ptr("../x")},
		"request field pid":         {Pid: ptr(int32(-1))},
		"9 is none of its values":   {ManageCgroupsMode: ptr(rpc.CriuCgMode(9))},
		"holds a zero byte":         {Root: ptr("a\x00b")},
	} {
		if _, err := FromRPC(options.Dump, options.Default(), req, Client{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestDecodeRefusesUnknownOptions(t *testing.T) {
	for msg, want := range map[string]string{
		"\x08\x0a":                             "",
		"\x08\x01\x12\x02\x08\x05":             "",                             // images_dir_fd
		"\x08\x01\x12\x05\x08\x05\x80\x08\x01": "option 128 is not known",      // check_mounts, which criu has given up
		"\x08\x01\x12\x02\x08":                 "request cannot be understood", // cut short
	} {
		_, err := decode([]byte(msg))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", msg, err, want)
		}
	}
}
