package restorers

import (
	"cryo/internal/image"
	"cryo/internal/remote"
	"encoding/binary"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
)

// maxAuxv bounds the auxiliary vector: the kernel keeps at most 2 * AT_VECTOR_SIZE words.
const maxAuxv = 128

// CheckMM checks the addresses the kernel keeps for a process.
func CheckMM(pid int, m *mm.MmEntry) error {
	if n := len(m.GetMmSavedAuxv()); n > maxAuxv {
		return image.Errorf(image.MM.File(uint64(pid)), 0, "mm_saved_auxv has %d words where the kernel takes at most %d", n, maxAuxv)
	}
	return nil
}

// EmitMM sets the addresses the kernel keeps for a process and its exe link. The task has mapped no file of the tool any
// more and forks no other before the link is set. exe is the open executable.
//
// Where memory comes late the arguments and the environment are left to EmitStrings: whoever reads them from outside, as ps
// does, has the kernel make pages of zeros where there are none yet.
func EmitMM(b *remote.Builder, m *mm.MmEntry, exe remote.Arg, late bool) {
	where := stringsOf(m)
	if late {
		none := m.GetMmStartStack() // the kernel wants addresses that might be
		where = [4]uint64{none, none, none, none}
	}
	emitMM(b, m, where, exe)
}

// EmitStrings says where the arguments and the environment are, after EmitMM and once faults in late memory are served.
func EmitStrings(b *remote.Builder, m *mm.MmEntry) {
	emitMM(b, m, stringsOf(m), remote.Imm(^uint32(0)))
}

// stringsOf is where the arguments and the environment begin and end.
func stringsOf(m *mm.MmEntry) [4]uint64 {
	return [4]uint64{m.GetMmArgStart(), m.GetMmArgEnd(), m.GetMmEnvStart(), m.GetMmEnvEnd()}
}

func emitMM(b *remote.Builder, m *mm.MmEntry, where [4]uint64, exe remote.Arg) {
	auxv := quads(m.GetMmSavedAuxv()...)
	code := m.GetMmStartCode()
	p := quads(code, max(m.GetMmEndCode(), code+1), m.GetMmStartData(), m.GetMmEndData(), m.GetMmStartBrk(), m.GetMmBrk(), m.GetMmStartStack())
	p = append(p, quads(append(where[:], 0)...)...)
	p = binary.NativeEndian.AppendUint32(p, uint32(len(auxv)))
	p = binary.NativeEndian.AppendUint32(p, 0)
	r := b.InOut(p)
	b.Store(r.At(prctlMMAuxv), b.Bytes(auxv))
	b.Store32(r.At(prctlMMExeFD), exe)
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_MM), remote.Imm(unix.PR_SET_MM_MAP), r, remote.Imm(len(p)), remote.Imm(0)).Must()
}

// Offsets in struct prctl_mm_map.
const (
	prctlMMAuxv  = 88
	prctlMMExeFD = 100
)

// words32 is a slice of 32-bit numbers in memory.
func words32[T ~uint32](v []T) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.NativeEndian.AppendUint32(b, uint32(x))
	}
	return b
}

// quads is 64-bit numbers in memory.
func quads(v ...uint64) []byte {
	b := make([]byte, 0, 8*len(v))
	for _, x := range v {
		b = binary.NativeEndian.AppendUint64(b, x)
	}
	return b
}
