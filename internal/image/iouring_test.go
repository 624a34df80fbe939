package image

import (
	"testing"

	"cryo/internal/iouring"

	ext_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
)

func TestIOURing(t *testing.T) {
	want := &IOURing{
		Flags: iouring.SQPoll, SQEntries: 8, CQEntries: 16, SQHead: 1<<32 - 1, CQTail: 7,
		SQ: iouring.SQOffsets{Tail: 4, Array: 320}, CQ: iouring.CQOffsets{Head: 8, CQEs: 64},
		Rings: []byte{1, 2, 3, 0, 0}, SQEs: make([]byte, 100),
		Buffers: []RingBuffer{{1 << 40, 4096}, {}, {5, 7}},
	}
	owner := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	e := &ext_file.ExtFileEntry{Id: proto.Uint32(5), Fown: owner}
	if got, err := GetIOURing(e); got != nil || err != nil {
		t.Errorf("there is no ring, but %v, %v", got, err)
	}
	SetIOURing(e, want)
	b, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	back := &ext_file.ExtFileEntry{}
	if err := proto.Unmarshal(b, back); err != nil {
		t.Fatal(err)
	}
	got, err := GetIOURing(back)
	if err != nil {
		t.Fatal(err)
	}
	want.Rings, want.SQEs = want.Rings[:3], []byte{}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(iouring.SQOffsets{}, iouring.CQOffsets{})); d != "" {
		t.Error(d)
	}
	for n := range b { // cut off anywhere it is an error or nothing, never a panic
		cut := &ext_file.ExtFileEntry{}
		if proto.Unmarshal(b[:n], cut) == nil {
			GetIOURing(cut)
		}
	}
}
