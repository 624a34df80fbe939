package collectors

import (
	"bytes"
	"errors"
	"io/fs"
	"strconv"

	"google.golang.org/protobuf/proto"
)

// readProcSelf reads the settings that have files of their own in /proc/PID: OOM score, login uid. A kernel without audit
// has no loginuid.
func readProcSelf(t *Task) error {
	score, err := readNumber(t, "oom_score_adj")
	if err != nil {
		return err
	}
	t.Core.Tc.OomScoreAdj = proto.Int32(int32(score))
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
