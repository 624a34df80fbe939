package collectors

import (
	"encoding/binary"
	"errors"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// maxAuxv is the number of words criu 4.2 has room for.
const maxAuxv = 44

// readMM fills the addresses of the mm image and the auxiliary vector.
func readMM(t *Task) error {
	s := t.Stat
	t.MM = &mm.MmEntry{
		MmStartCode: proto.Uint64(s.StartCode), MmEndCode: proto.Uint64(s.EndCode),
		MmStartData: proto.Uint64(s.StartData), MmEndData: proto.Uint64(s.EndData),
		MmStartStack: proto.Uint64(s.StartStack), MmStartBrk: proto.Uint64(s.StartBrk), MmBrk: proto.Uint64(0),
		MmArgStart: proto.Uint64(s.ArgStart), MmArgEnd: proto.Uint64(s.ArgEnd),
		MmEnvStart: proto.Uint64(s.EnvStart), MmEnvEnd: proto.Uint64(s.EnvEnd),
	}
	auxv, err := t.Proc.Read("auxv")
	if err != nil {
		return err
	}
	// The terminating pair of zeros is left out: the kernel ends the vector by itself, and criu takes no more than
	// maxAuxv words.
	for ; len(auxv) >= 16 && len(t.MM.MmSavedAuxv) < maxAuxv; auxv = auxv[16:] {
		tag, value := binary.NativeEndian.Uint64(auxv), binary.NativeEndian.Uint64(auxv[8:])
		if tag == 0 {
			break
		}
		t.MM.MmSavedAuxv = append(t.MM.MmSavedAuxv, tag, value)
	}
	return nil
}

// askMM asks for the program break, which no file tells.
func askMM(b *remote.Builder, _ *Task) Answer[*Task] {
	brk := b.Call(unix.SYS_BRK, remote.Imm(0))
	return func(r *remote.Results, t *Task) error {
		at, ok := r.Raw(brk)
		if !ok {
			return errors.New("the task did not tell its program break")
		}
		t.MM.MmBrk = proto.Uint64(uint64(at))
		return nil
	}
}

// CollectNamed names the files that a task uses without descriptors: its executable, working directory and root.
func CollectNamed(env *Env, t *Task) error {
	ids := [3]uint32{}
	for i, link := range []string{"exe", "cwd", "root"} {
		id, err := env.Files.Named(t, link)
		if err != nil {
			return err
		}
		ids[i] = id
	}
	t.MM.ExeFileId = proto.Uint32(ids[0])
	t.FS.CwdId, t.FS.RootId = proto.Uint32(ids[1]), proto.Uint32(ids[2])
	return nil
}
