package collectors

import (
	"encoding/binary"
	"fmt"

	"cryo/arch"
	"cryo/internal/remote"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"
)

// March is this architecture in core images.
const March = criu_core.CoreEntry_X86_64

// setRegisters fills the processor's part of a core image: general registers, with an interrupted system call made
// ready to be made again, and the extended state.
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
	fp, err := fpregs(t.XState)
	core.ThreadInfo.Fpregs = fp
	return err
}

// setClearTid notes the address the kernel clears when the thread ends.
func setClearTid(core *criu_core.CoreEntry, addr uint64) error {
	core.ThreadInfo.ClearTidAddr = proto.Uint64(addr)
	return nil
}

// Where things are in the extended state: the FXSAVE area, then the XSAVE header, which begins with XSTATE_BV.
const (
	fxST      = 32
	fxXMM     = 160
	fxSize    = 512
	xsaveSize = fxSize + 64
)

// fpregs makes the image of an extended state in the standard layout of XSAVE. Each component the processor has gets
// its array, used or not, because a restore compares the sizes.
func fpregs(state []byte) (*core_x86.UserX86FpregsEntry, error) {
	if len(state) < fxSize {
		return nil, fmt.Errorf("an extended state of %d bytes is too short", len(state))
	}
	le := binary.LittleEndian
	u16 := func(off int) *uint32 { return proto.Uint32(uint32(le.Uint16(state[off:]))) }
	e := &core_x86.UserX86FpregsEntry{
		Cwd: u16(0), Swd: u16(2), Twd: u16(4), Fop: u16(6),
		Rip: proto.Uint64(le.Uint64(state[8:])), Rdp: proto.Uint64(le.Uint64(state[16:])),
		Mxcsr: proto.Uint32(le.Uint32(state[24:])), MxcsrMask: proto.Uint32(le.Uint32(state[28:])),
		StSpace: words32(state[fxST:fxXMM]), XmmSpace: words32(state[fxXMM : fxXMM+256]),
	}
	if len(state) < xsaveSize {
		return e, nil // a processor without XSAVE
	}
	x := &core_x86.UserX86XsaveEntry{XstateBv: proto.Uint64(le.Uint64(state[fxSize:]))}
	part := func(component int) []byte {
		c := arch.XComponents()[component]
		if end := int(c.Offset + c.Size); c.Size == 0 || end > len(state) {
			return nil
		}
		return state[c.Offset : c.Offset+c.Size]
	}
	x.YmmhSpace = words32(part(arch.XFeatureYMM))
	x.BndregState = words64(part(arch.XFeatureBndRegs))
	x.BndcsrState = words64(part(arch.XFeatureBndCSR))
	x.OpmaskReg = words64(part(arch.XFeatureOpmask))
	x.ZmmUpper = words64(part(arch.XFeatureZMMHi256))
	x.Hi16Zmm = words64(part(arch.XFeatureHi16ZMM))
	x.Pkru = words32(part(arch.XFeaturePKRU))
	if x.GetXstateBv()&(1<<arch.XFeatureTileData) != 0 {
		return nil, fmt.Errorf("the thread uses AMX tiles, which the image format cannot hold yet")
	}
	e.Xsave = x
	return e, nil
}

func words32(b []byte) []uint32 {
	if b == nil {
		return nil
	}
	w := make([]uint32, len(b)/4)
	for i := range w {
		w[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return w
}

func words64(b []byte) []uint64 {
	if b == nil {
		return nil
	}
	w := make([]uint64, len(b)/8)
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w
}
