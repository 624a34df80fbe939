package restorers

import (
	"encoding/binary"
	"fmt"
	"slices"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	"golang.org/x/sys/unix"
)

const (
	lastCapability = 63 // of the two words the kernel has for a set
	maxGroups      = 65536
	noSetuidFixup  = 1 << 2 // SECBIT_NO_SETUID_FIXUP: a change of user ids leaves capabilities alone
)

func checkCredentials(e *StateEmit) error {
	c := e.Thread.GetThreadCore().GetCreds()
	if c == nil {
		return fmt.Errorf("no credentials")
	}
	if len(c.Groups) > maxGroups {
		return fmt.Errorf("%d groups", len(c.Groups))
	}
	for _, set := range [][]uint32{c.CapInh, c.CapPrm, c.CapEff, c.CapBnd, c.CapAmb} {
		if len(set) > 2 {
			return fmt.Errorf("a capability set of %d words", len(set))
		}
	}
	if lacking := capSet(c.CapPrm) &^ e.Base.CapBnd; lacking != 0 {
		return fmt.Errorf("capabilities %#x are not in the bounding set of the tool: restore with a tool that has them", lacking)
	}
	return nil
}

// capSet joins the 32-bit words of a set in an image.
func capSet(words []uint32) uint64 {
	var set uint64
	for i, w := range words[:min(len(words), 2)] {
		set |= uint64(w) << (32 * i)
	}
	return set
}

// emitCredentials gives the thread its ids and capabilities. What the thread has from the tool already is left alone.
// Capabilities go last; until then NO_SETUID_FIXUP keeps them over the change of ids.
func emitCredentials(e *StateEmit) {
	c := e.Thread.GetThreadCore().GetCreds()
	emitGroups(e, c)
	emitIDs(e, c)
	emitInheritable(e, c)
	emitBounding(e, c)
	e.Call(unix.SYS_CAPSET, capHeader(e), e.Bytes(capData(capSet(c.CapEff), capSet(c.CapPrm), capSet(c.CapInh)))).Must().Discard()
	for capability := range lastCapability + 1 {
		if capSet(c.CapAmb)&(1<<capability) != 0 {
			e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_CAP_AMBIENT), remote.Imm(unix.PR_CAP_AMBIENT_RAISE), remote.Imm(capability), remote.Imm(0), remote.Imm(0)).Must().Discard()
		}
	}
	if c.GetNoNewPrivs() != 0 {
		e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_NO_NEW_PRIVS), remote.Imm(1), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
	}
}

func emitGroups(e *StateEmit, c *creds.CredsEntry) {
	if slices.Equal(c.Groups, e.Base.Groups) {
		return
	}
	list := make([]byte, 0, 4*len(c.Groups)+4)
	for _, g := range c.Groups {
		list = binary.NativeEndian.AppendUint32(list, g)
	}
	if len(list) == 0 {
		list = append(list, 0, 0, 0, 0)
	}
	e.Call(unix.SYS_SETGROUPS, remote.Imm(len(c.Groups)), e.Bytes(list)).Must().Discard()
}

func emitIDs(e *StateEmit, c *creds.CredsEntry) {
	gids := [4]uint32{c.GetGid(), c.GetEgid(), c.GetSgid(), c.GetFsgid()}
	uids := [4]uint32{c.GetUid(), c.GetEuid(), c.GetSuid(), c.GetFsuid()}
	if gids != e.Base.Gid {
		e.Call(unix.SYS_SETRESGID, remote.Imm(gids[0]), remote.Imm(gids[1]), remote.Imm(gids[2])).Must().Discard()
		e.Call(unix.SYS_SETFSGID, remote.Imm(gids[3])).Discard()
	}
	if uids != e.Base.Uid {
		emitSecurebits(e, noSetuidFixup)
		e.Call(unix.SYS_SETRESUID, remote.Imm(uids[0]), remote.Imm(uids[1]), remote.Imm(uids[2])).Must().Discard()
		e.Call(unix.SYS_SETFSUID, remote.Imm(uids[3])).Discard()
		emitSecurebits(e, c.GetSecbits())
	} else if c.GetSecbits() != 0 {
		emitSecurebits(e, c.GetSecbits())
	}
}

func emitSecurebits(e *StateEmit, bits uint32) {
	e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_SECUREBITS), remote.Imm(bits), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
}

// emitInheritable sets the inheritable capabilities while the bounding set still allows any.
func emitInheritable(e *StateEmit, c *creds.CredsEntry) {
	inh := capSet(c.CapInh)
	if inh == 0 || inh&^capSet(c.CapBnd) == 0 {
		return
	}
	e.Call(unix.SYS_CAPSET, capHeader(e), e.Bytes(capData(e.Base.CapBnd, e.Base.CapBnd, inh))).Must().Discard()
}

// emitBounding drops from the bounding set what the tool has and the thread had not.
func emitBounding(e *StateEmit, c *creds.CredsEntry) {
	drop := e.Base.CapBnd &^ capSet(c.CapBnd)
	for capability := range lastCapability + 1 {
		if drop&(1<<capability) != 0 {
			e.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_CAPBSET_DROP), remote.Imm(capability), remote.Imm(0), remote.Imm(0), remote.Imm(0)).Must().Discard()
		}
	}
}

// capHeader is a struct __user_cap_header_struct for the calling thread.
func capHeader(e *StateEmit) remote.Ref {
	return e.Bytes(binary.NativeEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3))
}

// capData is two structs __user_cap_data_struct.
func capData(eff, prm, inh uint64) []byte {
	var b []byte
	for shift := 0; shift < 64; shift += 32 {
		for _, set := range []uint64{eff, prm, inh} {
			b = binary.NativeEndian.AppendUint32(b, uint32(set>>shift))
		}
	}
	return b
}
