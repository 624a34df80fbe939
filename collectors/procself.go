package collectors

import (
	"bytes"
	"errors"
	"io/fs"
	"strconv"

	"google.golang.org/protobuf/proto"
)

// readProcSelf reads the settings that have files of their own in /proc/PID: personality, OOM score, login uid. A kernel
// without audit has no loginuid.
func readProcSelf(t *Task) error {
	persona, err := readNumber(t, "personality", 16)
	if err != nil {
		return err
	}
	t.Core.Tc.Personality = proto.Uint32(uint32(persona))
	score, err := readNumber(t, "oom_score_adj", 10)
	if err != nil {
		return err
	}
	t.Core.Tc.OomScoreAdj = proto.Int32(int32(score))
	uid, err := readNumber(t, "loginuid", 10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	t.Core.Tc.Loginuid = proto.Uint32(uint32(uid))
	return err
}

func readNumber(t *Task, entry string, base int) (int64, error) {
	b, err := t.Proc.Read(entry)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(b)), base, 64)
}
