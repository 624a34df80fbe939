package collectors

import (
	"cryo/internal/remote"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"
)

// March is this architecture in core images.
const March = criu_core.CoreEntry_X86_64

// setRegisters fills the processor's part of a core image.
func setRegisters(core *criu_core.CoreEntry, t *remote.Thread) error {
	r := t.Regs
	r.FixRestart()
	u := proto.Uint64
	core.ThreadInfo = &core_x86.ThreadInfoX86{ClearTidAddr: u(0), Gpregs: &core_x86.UserX86RegsEntry{
		R15: u(r.R15), R14: u(r.R14), R13: u(r.R13), R12: u(r.R12), Bp: u(r.BP), Bx: u(r.BX), R11: u(r.R11), R10: u(r.R10),
		R9: u(r.R9), R8: u(r.R8), Ax: u(r.AX), Cx: u(r.CX), Dx: u(r.DX), Si: u(r.SI), Di: u(r.DI), OrigAx: u(r.OrigAX),
		Ip: u(r.IP), Cs: u(r.CS), Flags: u(r.Flags), Sp: u(r.SP), Ss: u(r.SS), FsBase: u(r.FSBase), GsBase: u(r.GSBase),
		Ds: u(r.DS), Es: u(r.ES), Fs: u(r.FS), Gs: u(r.GS), Mode: core_x86.UserX86RegsMode_NATIVE.Enum(),
	}}
	return nil
}

// setClearTid notes the address the kernel clears when the thread ends.
func setClearTid(core *criu_core.CoreEntry, addr uint64) error {
	core.ThreadInfo.ClearTidAddr = proto.Uint64(addr)
	return nil
}
