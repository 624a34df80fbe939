package restorers

import (
	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"golang.org/x/sys/unix"
)

// UTSNS is the UTS namespace of a set. Where it is not the one the dump's tool was in the root is cloned into a new one
// (CLONE_NEWUTS, Linux 2.6.19) and gives it its names.
type UTSNS struct{ names *utsns.UtsnsEntry } // nil: there is none to make

// maxName is the longest name of a machine or domain (__NEW_UTS_LEN).
const maxName = 64

// PlanUTSNS reads the names of the namespace.
func PlanUTSNS(s *Set) (*UTSNS, error) {
	id, own := s.Tasks[0].IDs.GetUtsNsId(), s.Inventory.GetRootIds()
	if id == 0 || own == nil || id == own.GetUtsNsId() {
		return &UTSNS{}, nil
	}
	names, err := image.Read(s.Source, image.Utsns, uint64(id))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{names.GetNodename(), names.GetDomainname()} {
		if len(name) > maxName {
			return nil, image.Errorf(image.Utsns.File(uint64(id)), 0, "the name %.100q is longer than %d bytes", name, maxName)
		}
	}
	return &UTSNS{names}, nil
}

// CloneFlags are those that make the root.
func (n *UTSNS) CloneFlags() uint64 {
	if n.names == nil {
		return 0
	}
	return unix.CLONE_NEWUTS
}

// Emit has the root name its new namespace.
func (n *UTSNS) Emit(b *remote.Builder) {
	for _, c := range []struct {
		nr   int
		name string
	}{{unix.SYS_SETHOSTNAME, n.names.GetNodename()}, {unix.SYS_SETDOMAINNAME, n.names.GetDomainname()}} {
		b.Call(c.nr, b.String(c.name), remote.Imm(len(c.name))).Must().Discard()
	}
}
