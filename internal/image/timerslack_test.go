package image

import (
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/proto"
)

func TestTimerSlack(t *testing.T) {
	for _, slack := range []uint64{1, 49_999, 50_000, 1 << 40} {
		e := &criu_core.ThreadCoreEntry{FutexRla: proto.Uint64(0), FutexRlaLen: proto.Uint32(0)}
		SetTimerSlack(e, slack)
		if unknown := len(e.ProtoReflect().GetUnknown()); (unknown == 0) != (slack == DefaultTimerSlack) {
			t.Errorf("%d: %d bytes", slack, unknown)
		}
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		back := &criu_core.ThreadCoreEntry{}
		if err := proto.Unmarshal(b, back); err != nil {
			t.Fatal(err)
		}
		if got := GetTimerSlack(back); got != slack {
			t.Errorf("%d came back as %d", slack, got)
		}
	}
	if got := GetTimerSlack(&criu_core.ThreadCoreEntry{}); got != DefaultTimerSlack {
		t.Errorf("nothing noted is %d", got)
	}
}
