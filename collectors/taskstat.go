package collectors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strconv"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	img_fs "github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"google.golang.org/protobuf/proto"
)

func selfPid() int { return os.Getpid() }

// CollectStat fills what /proc tells about a live task: the beginnings of its core and mm images, and those of its
// threads. It may run for several tasks at once.
func CollectStat(t *Task) error {
	s := t.Stat
	t.Core = newCore()
	t.Core.Tc = &criu_core.TaskCoreEntry{
		TaskState: proto.Uint32(uint32(t.State)), ExitCode: proto.Uint32(0), Flags: proto.Uint32(uint32(s.Flags)),
		Comm: proto.String(s.Comm), BlkSigset: proto.Uint64(0),
	}
	if t.State == Stopped {
		t.Core.Tc.StopSigno = proto.Uint32(uint32(t.StopSignal))
	}
	for _, step := range []func(*Task) error{collectPersonality, collectProcMisc, collectLimits, collectThreads, collectMM} {
		if err := step(t); err != nil {
			return err
		}
	}
	return nil
}

func collectPersonality(t *Task) error {
	b, err := t.Proc.Read("personality")
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 16, 32)
	t.Core.Tc.Personality = proto.Uint32(uint32(n))
	return err
}

// collectProcMisc reads the settings that have files of their own. A kernel without audit has no loginuid.
func collectProcMisc(t *Task) error {
	n, err := readNumber(t, "oom_score_adj")
	if err != nil {
		return err
	}
	t.Core.Tc.OomScoreAdj = proto.Int32(int32(n))
	uid, err := readNumber(t, "loginuid")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t.Core.Tc.Loginuid = proto.Uint32(uint32(uid))
	return err
}

func readNumber(t *Task, entry string) (int64, error) {
	b, err := t.Proc.Read(entry)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
}

func collectLimits(t *Task) (err error) {
	t.Core.Tc.Rlimits, err = Rlimits(t)
	return err
}

// collectThreads reads the status of every thread: its ids in the tree's namespace and its credentials.
func collectThreads(t *Task) error {
	for _, th := range t.Threads {
		s, err := t.Proc.ThreadStatus(th.Tid)
		if err != nil {
			return err
		}
		th.Status, th.VTid = s, th.Tid
		if n := len(s.NSpid); n > 0 {
			th.VTid = s.NSpid[n-1]
		}
		if th == t.Leader() {
			th.Core = t.Core
		} else {
			th.Core = newCore()
		}
		th.Core.ThreadCore.Creds = Creds(s)
	}
	t.Status = t.Leader().Status
	t.FS = &img_fs.FsEntry{}
	if t.Status.Umask >= 0 {
		t.FS.Umask = proto.Uint32(uint32(t.Status.Umask))
	}
	return nil
}

// maxAuxv is the number of words criu 4.2 has room for.
const maxAuxv = 44

// collectMM fills the addresses of the mm image. Break, dumpable and THP are the task's own answer.
func collectMM(t *Task) error {
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
