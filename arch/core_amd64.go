package arch

import (
	"errors"
	"fmt"
	"sync"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"
)

// March is this architecture in core images.
const March = criu_core.CoreEntry_X86_64

// Extra is what an x86-64 thread has in the processor besides registers and extended state.
type Extra struct {
	// ShadowStack says whether the thread has a user shadow stack (kernel 6.6), SSP where its pointer stands.
	ShadowStack bool
	SSP         uint64
}

// ThreadPointer is the base address of thread-local storage.
func (s *State) ThreadPointer() uint64 { return s.Regs.FSBase }

// firstTLSEntry is the number of the first of the three TLS entries of the GDT. 64-bit tasks have none in use; the
// image holds them all the same.
const firstTLSEntry, tlsEntries = 12, 3

// dropState leaves nothing of a thread's state in its image but the address of set_tid_address.
func dropState(core *criu_core.CoreEntry) {
	core.ThreadInfo = &core_x86.ThreadInfoX86{ClearTidAddr: core.GetThreadInfo().ClearTidAddr}
}

// usualXState is room for the extended state of most processors.
const usualXState = 4 << 10

func (s *State) toCore(core *criu_core.CoreEntry, clearTID uint64) error {
	fp, err := fpregsFromXState(PadXState(make([]byte, 0, usualXState), s.XState))
	if err != nil {
		return err
	}
	if hasShadowStacks() {
		fp.Xsave.Cet = &core_x86.UserX86CetEntry{Cet: proto.Uint64(0), Ssp: proto.Uint64(s.Extra.SSP)}
	}
	r := s.Regs
	r.FixRestart()
	core.ThreadInfo = &core_x86.ThreadInfoX86{
		ClearTidAddr: proto.Uint64(clearTID),
		Gpregs:       gpregsFromRegs(&r),
		Fpregs:       fp,
	}
	for i := range uint32(tlsEntries) {
		core.ThreadInfo.Tls = append(core.ThreadInfo.Tls, &core_x86.UserDescT{
			EntryNumber: proto.Uint32(firstTLSEntry + i), BaseAddr: proto.Uint32(0), Limit: proto.Uint32(0),
			Seg_32Bit: proto.Bool(false), ContentsH: proto.Bool(false), ContentsL: proto.Bool(false),
			ReadExecOnly: proto.Bool(true), LimitInPages: proto.Bool(false), SegNotPresent: proto.Bool(true), Usable: proto.Bool(false),
		})
	}
	return nil
}

// hasShadowStacks says whether the processor has them, used or not: criu has the field in its images then.
var hasShadowStacks = sync.OnceValue(func() bool {
	_, _, ecx, _ := cpuid(7, 0)
	return ecx&(1<<7) != 0 && XFeatures() != 0
})

func (s *State) fromCore(core *criu_core.CoreEntry) error {
	info := core.GetThreadInfo()
	if info.GetGpregs() == nil {
		return errors.New("it has no registers")
	}
	if info.GetGpregs().GetMode() == core_x86.UserX86RegsMode_COMPAT {
		return errors.New("the task runs 32-bit code, which is not supported")
	}
	if ssp := info.GetFpregs().GetXsave().GetCet().GetSsp(); ssp != 0 {
		s.Extra = Extra{ShadowStack: true, SSP: ssp}
	}
	s.Regs = regsFromGpregs(info.GetGpregs())
	var err error
	if info.GetFpregs() != nil {
		s.XState, err = xstateFromFpregs(info.GetFpregs())
	}
	return err
}

func gpregsFromRegs(r *Regs) *core_x86.UserX86RegsEntry {
	u := proto.Uint64
	return &core_x86.UserX86RegsEntry{
		R15: u(r.R15), R14: u(r.R14), R13: u(r.R13), R12: u(r.R12), Bp: u(r.BP), Bx: u(r.BX),
		R11: u(r.R11), R10: u(r.R10), R9: u(r.R9), R8: u(r.R8),
		Ax: u(r.AX), Cx: u(r.CX), Dx: u(r.DX), Si: u(r.SI), Di: u(r.DI), OrigAx: u(r.OrigAX),
		Ip: u(r.IP), Cs: u(r.CS), Flags: u(r.Flags), Sp: u(r.SP), Ss: u(r.SS),
		FsBase: u(r.FSBase), GsBase: u(r.GSBase), Ds: u(r.DS), Es: u(r.ES), Fs: u(r.FS), Gs: u(r.GS),
		Mode: core_x86.UserX86RegsMode_NATIVE.Enum(),
	}
}

func regsFromGpregs(g *core_x86.UserX86RegsEntry) Regs {
	return Regs{
		R15: g.GetR15(), R14: g.GetR14(), R13: g.GetR13(), R12: g.GetR12(), BP: g.GetBp(), BX: g.GetBx(),
		R11: g.GetR11(), R10: g.GetR10(), R9: g.GetR9(), R8: g.GetR8(),
		AX: g.GetAx(), CX: g.GetCx(), DX: g.GetDx(), SI: g.GetSi(), DI: g.GetDi(), OrigAX: g.GetOrigAx(),
		IP: g.GetIp(), CS: g.GetCs(), Flags: g.GetFlags(), SP: g.GetSp(), SS: g.GetSs(),
		FSBase: g.GetFsBase(), GSBase: g.GetGsBase(), DS: g.GetDs(), ES: g.GetEs(), FS: g.GetFs(), GS: g.GetGs(),
	}
}

// Offsets in the FXSAVE area.
const (
	fxCWD, fxSWD, fxTWD, fxFOP = 0, 2, 4, 6
	fxRIP, fxRDP               = 8, 16
	fxMXCSR, fxMXCSRMask       = 24, 28
	fxST, fxXMM                = 32, 160
	stWords, xmmWords          = 32, 64
)

func fpregsFromXState(x []byte) (*core_x86.UserX86FpregsEntry, error) {
	if len(x) < xsaveLegacy {
		return nil, fmt.Errorf("an extended state of %d bytes is too short", len(x))
	}
	fp := &core_x86.UserX86FpregsEntry{
		Cwd: proto.Uint32(uint32(le.Uint16(x[fxCWD:]))), Swd: proto.Uint32(uint32(le.Uint16(x[fxSWD:]))),
		Twd: proto.Uint32(uint32(le.Uint16(x[fxTWD:]))), Fop: proto.Uint32(uint32(le.Uint16(x[fxFOP:]))),
		Rip: proto.Uint64(le.Uint64(x[fxRIP:])), Rdp: proto.Uint64(le.Uint64(x[fxRDP:])),
		Mxcsr: proto.Uint32(le.Uint32(x[fxMXCSR:])), MxcsrMask: proto.Uint32(le.Uint32(x[fxMXCSRMask:])),
		StSpace: words32(x[fxST:], stWords), XmmSpace: words32(x[fxXMM:], xmmWords),
	}
	if len(x) < xsaveLegacy+xsaveHeader {
		return fp, nil
	}
	fp.Xsave = &core_x86.UserX86XsaveEntry{XstateBv: proto.Uint64(le.Uint64(x[xstateBV:]))}
	for _, c := range imageComponents(fp.Xsave) {
		part := XComponents()[c.feature]
		if part.Size == 0 || int(part.Offset+part.Size) > len(x) {
			continue
		}
		at := x[part.Offset:]
		if c.words64 != nil {
			*c.words64 = words64(at, int(c.bytes/8))
		} else {
			*c.words32 = words32(at, int(c.bytes/4))
		}
	}
	return fp, nil
}

// imageComponent is a field of the image that holds one component of the extended state. bytes is how much of it the
// image holds: criu's size, which may differ from the processor's.
type imageComponent struct {
	feature int
	bytes   uint32
	words32 *[]uint32
	words64 *[]uint64
}

func imageComponents(e *core_x86.UserX86XsaveEntry) []imageComponent {
	return []imageComponent{
		{XFeatureYMM, 256, &e.YmmhSpace, nil},
		{XFeatureBndRegs, 64, nil, &e.BndregState},
		{XFeatureBndCSR, 64, nil, &e.BndcsrState},
		{XFeatureOpmask, 64, nil, &e.OpmaskReg},
		{XFeatureZMMHi256, 512, nil, &e.ZmmUpper},
		{XFeatureHi16ZMM, 1024, nil, &e.Hi16Zmm},
		{XFeaturePKRU, 8, &e.Pkru, nil},
	}
}

// UnstorableXState names the components of the extended state that are in use and that a core image has no place for.
func UnstorableXState(x []byte) (names []string) {
	if len(x) < xsaveLegacy+xsaveHeader {
		return nil
	}
	bv := le.Uint64(x[xstateBV:]) &^ (1<<XFeatureFP | 1<<XFeatureSSE)
	for _, c := range imageComponents(new(core_x86.UserX86XsaveEntry)) {
		bv &^= 1 << c.feature
	}
	for i := range maxXFeature {
		if bv&(1<<i) == 0 {
			continue
		}
		switch i {
		case XFeatureTileCfg:
			names = append(names, "AMX tile configuration")
		case XFeatureTileData:
			names = append(names, "AMX tile data")
		default:
			names = append(names, fmt.Sprintf("extended state component %d", i))
		}
	}
	return names
}

func xstateFromFpregs(fp *core_x86.UserX86FpregsEntry) ([]byte, error) {
	if len(fp.GetStSpace()) < stWords || len(fp.GetXmmSpace()) < xmmWords {
		return nil, fmt.Errorf("it has %d words of x87 and %d of SSE state instead of %d and %d",
			len(fp.GetStSpace()), len(fp.GetXmmSpace()), stWords, xmmWords)
	}
	x := make([]byte, XStateMax())
	le.PutUint16(x[fxCWD:], uint16(fp.GetCwd()))
	le.PutUint16(x[fxSWD:], uint16(fp.GetSwd()))
	le.PutUint16(x[fxTWD:], uint16(fp.GetTwd()))
	le.PutUint16(x[fxFOP:], uint16(fp.GetFop()))
	le.PutUint64(x[fxRIP:], fp.GetRip())
	le.PutUint64(x[fxRDP:], fp.GetRdp())
	le.PutUint32(x[fxMXCSR:], fp.GetMxcsr())
	le.PutUint32(x[fxMXCSRMask:], fp.GetMxcsrMask())
	putWords32(x[fxST:], fp.GetStSpace()[:stWords])
	putWords32(x[fxXMM:], fp.GetXmmSpace()[:xmmWords])
	if len(x) < xsaveLegacy+xsaveHeader {
		if bv := fp.GetXsave().GetXstateBv(); bv&^(1<<XFeatureFP|1<<XFeatureSSE) != 0 {
			return nil, fmt.Errorf("it has extended state %#x and this processor has no XSAVE", bv)
		}
		return x, nil
	}
	bv, err := putComponents(x, fp.GetXsave())
	// The fields above hold the right values also where the processor had marked x87 and SSE as unused.
	le.PutUint64(x[xstateBV:], bv|1<<XFeatureFP|1<<XFeatureSSE)
	return x, err
}

// putComponents places the components that were in use and returns which those are.
func putComponents(x []byte, e *core_x86.UserX86XsaveEntry) (bv uint64, err error) {
	if e == nil {
		return 0, nil
	}
	bv = e.GetXstateBv() &^ (1<<XFeatureFP | 1<<XFeatureSSE)
	left := bv
	for _, c := range imageComponents(e) {
		if bv&(1<<c.feature) == 0 {
			continue
		}
		left &^= 1 << c.feature
		part := XComponents()[c.feature]
		if part.Size == 0 {
			return 0, fmt.Errorf("it uses component %d of the extended state, which this processor or kernel does not have", c.feature)
		}
		got := len(*orEmpty(c.words32))*4 + len(*orEmpty(c.words64))*8
		if got == 0 { // an older image: the component starts afresh
			bv &^= 1 << c.feature
			continue
		}
		if got < int(c.bytes) {
			return 0, fmt.Errorf("component %d of the extended state has %d bytes instead of %d", c.feature, got, c.bytes)
		}
		if c.words64 != nil {
			putWords64(x[part.Offset:][:c.bytes], (*c.words64)[:c.bytes/8])
		} else {
			putWords32(x[part.Offset:][:c.bytes], (*c.words32)[:c.bytes/4])
		}
	}
	// What criu lists as in use without having a field for it cannot be brought back.
	return bv &^ left, nil
}

func orEmpty[T any](p *[]T) *[]T {
	if p == nil {
		return new([]T)
	}
	return p
}

// HasShadowStack says whether the thread has a user shadow stack.
func (s *State) HasShadowStack() bool { return s.Extra.ShadowStack }
