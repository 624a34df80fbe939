package rpc

import (
	"testing"

	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// FuzzRequest turns arbitrary packets into options.
func FuzzRequest(f *testing.F) {
	for _, req := range []*rpc.CriuReq{
		{Type: rpc.CriuReqType_VERSION.Enum(), KeepOpen: ptr(true)},
		{Type: rpc.CriuReqType_DUMP.Enum(), Opts: &rpc.CriuOpts{
			ImagesDirFd: ptr(int32(3)), Pid: ptr(int32(7)), External: []string{"net[1]:x"}, Ps: &rpc.CriuPageServerInfo{Port: ptr(int32(80))},
			ExtMnt: []*rpc.ExtMountMap{{Key: ptr("a"), Val: ptr("b")}}, ManageCgroupsMode: ptr(rpc.CriuCgMode_FULL),
		}},
		{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: &rpc.CriuOpts{
			ImagesDirFd: ptr(int32(-1)), ImagesDir: ptr("/x"), InheritFd: []*rpc.InheritFd{{Key: ptr("k"), Fd: ptr(int32(1))}}, ExecCmd: []string{"true"},
			JoinNs: []*rpc.JoinNamespace{{Ns: ptr("net"), NsFile: ptr("/f")}}, CpuCap: ptr(uint32(1)),
		}},
	} {
		msg, err := req.MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		req, err := decode(msg)
		if err != nil || req.Opts == nil {
			return
		}
		req.Opts.ConfigFile = nil // not a file of this machine
		for _, verb := range []options.Verb{options.Dump, options.Restore, options.Check} {
			for _, worker := range []bool{false, true} {
				if o, err := FromRPC(verb, options.Default(), req.Opts, Client{Worker: worker}); err == nil {
					o.Check(verb)
				}
			}
		}
	})
}
