package arch

import (
	"errors"
	"fmt"

	core_aarch64 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-aarch64"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"
)

// March is this architecture in core images.
const March = criu_core.CoreEntry_AARCH64

// Extra is what an arm64 thread has in the processor besides registers and extended state.
type Extra struct {
	TLS   uint64 // TPIDR_EL0
	PACA  []byte // NT_ARM_PACA_KEYS: keys of pointer authentication, nil without
	PACG  []byte // NT_ARM_PACG_KEYS
	PACOn uint64 // NT_ARM_PAC_ENABLED_KEYS
	SVE   []byte // NT_ARM_SVE, nil unless in use; system calls destroy what is longer than 128 bits
}

const (
	pacaBytes = 64
	pacgBytes = 16
	genRegs   = 31
)

// ThreadPointer is the base address of thread-local storage.
func (s *State) ThreadPointer() uint64 { return s.Extra.TLS }

// dropState leaves nothing of a thread's state in its image but the address of set_tid_address.
func dropState(core *criu_core.CoreEntry) {
	core.TiAarch64 = &core_aarch64.ThreadInfoAarch64{ClearTidAddr: core.GetTiAarch64().ClearTidAddr}
}

func (s *State) toCore(core *criu_core.CoreEntry, clearTID uint64) error {
	if len(s.XState) < fpsimdFPCR+4 {
		return fmt.Errorf("an extended state of %d bytes is too short", len(s.XState))
	}
	core.TiAarch64 = &core_aarch64.ThreadInfoAarch64{
		ClearTidAddr: proto.Uint64(clearTID),
		Tls:          proto.Uint64(s.Extra.TLS),
		Gpregs: &core_aarch64.UserAarch64RegsEntry{
			Regs: append([]uint64(nil), s.Regs.X[:]...),
			Sp:   proto.Uint64(s.Regs.SP), Pc: proto.Uint64(s.Regs.IP), Pstate: proto.Uint64(s.Regs.PState),
		},
		Fpsimd: &core_aarch64.UserAarch64FpsimdContextEntry{
			Vregs: words64(s.XState, vectorBytes/8),
			Fpsr:  proto.Uint32(le.Uint32(s.XState[fpsimdFPSR:])),
			Fpcr:  proto.Uint32(le.Uint32(s.XState[fpsimdFPCR:])),
		},
		PacKeys: s.Extra.pacKeys(),
	}
	return nil
}

func (e *Extra) pacKeys() *core_aarch64.PacKeys {
	k := new(core_aarch64.PacKeys)
	if len(e.PACA) == pacaBytes {
		w := words64(e.PACA, pacaBytes/8)
		k.PacAddressKeys = &core_aarch64.PacAddressKeys{
			ApiakeyLo: &w[0], ApiakeyHi: &w[1], ApibkeyLo: &w[2], ApibkeyHi: &w[3],
			ApdakeyLo: &w[4], ApdakeyHi: &w[5], ApdbkeyLo: &w[6], ApdbkeyHi: &w[7],
			PacEnabledKey: proto.Uint64(e.PACOn),
		}
	}
	if len(e.PACG) == pacgBytes {
		w := words64(e.PACG, pacgBytes/8)
		k.PacGenericKeys = &core_aarch64.PacGenericKeys{ApgakeyLo: &w[0], ApgakeyHi: &w[1]}
	}
	return k
}

func (s *State) fromCore(core *criu_core.CoreEntry) error {
	info := core.GetTiAarch64()
	g, v := info.GetGpregs(), info.GetFpsimd()
	switch {
	case g == nil:
		return errors.New("it has no registers")
	case len(g.GetRegs()) != genRegs:
		return fmt.Errorf("it has %d registers instead of %d", len(g.GetRegs()), genRegs)
	case v != nil && len(v.GetVregs()) != vectorBytes/8:
		return fmt.Errorf("it has %d words of vector registers instead of %d", len(v.GetVregs()), vectorBytes/8)
	}
	copy(s.Regs.X[:], g.GetRegs())
	s.Regs.SP, s.Regs.IP, s.Regs.PState = g.GetSp(), g.GetPc(), g.GetPstate()
	if v != nil {
		s.XState = make([]byte, fpsimdStruct)
		putWords64(s.XState, v.GetVregs())
		le.PutUint32(s.XState[fpsimdFPSR:], v.GetFpsr())
		le.PutUint32(s.XState[fpsimdFPCR:], v.GetFpcr())
	}
	s.Extra.TLS = info.GetTls()
	if a := info.GetPacKeys().GetPacAddressKeys(); a != nil {
		s.Extra.PACA = make([]byte, pacaBytes)
		putWords64(s.Extra.PACA, []uint64{a.GetApiakeyLo(), a.GetApiakeyHi(), a.GetApibkeyLo(), a.GetApibkeyHi(),
			a.GetApdakeyLo(), a.GetApdakeyHi(), a.GetApdbkeyLo(), a.GetApdbkeyHi()})
		s.Extra.PACOn = a.GetPacEnabledKey()
	}
	if k := info.GetPacKeys().GetPacGenericKeys(); k != nil {
		s.Extra.PACG = make([]byte, pacgBytes)
		putWords64(s.Extra.PACG, []uint64{k.GetApgakeyLo(), k.GetApgakeyHi()})
	}
	return nil
}

// UnstorableXState names the components of the extended state that are in use and that a core image has no place for.
// What of SVE is longer than 128 bits is told by Extra.SVE.
func UnstorableXState([]byte) []string { return nil }

// HasShadowStack says whether the thread has a user shadow stack (guarded control stack), which is not known here.
func (s *State) HasShadowStack() bool { return false }
