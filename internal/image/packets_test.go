package image

import (
	"slices"
	"testing"

	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"google.golang.org/protobuf/proto"
)

func TestPipePackets(t *testing.T) {
	for _, test := range []struct {
		bytes   uint32
		lengths []int
		ok      bool
	}{
		{10, []int{1, 4, 5}, true},
		{10, []int{10}, true},
		{10, nil, false},
		{10, []int{1, 4}, false},
		{10, []int{1, 4, 6}, false},
		{10, []int{0, 10}, false},
	} {
		e := &pipe_data.PipeDataEntry{PipeId: proto.Uint32(1), Bytes: proto.Uint32(test.bytes)}
		SetPipePackets(e, test.lengths)
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		back := &pipe_data.PipeDataEntry{}
		if err := proto.Unmarshal(b, back); err != nil {
			t.Fatal(err)
		}
		got, err := PipePackets(back)
		if (err == nil) != test.ok || test.ok && !slices.Equal(got, test.lengths) {
			t.Errorf("%d bytes in %v: got %v, %v", test.bytes, test.lengths, got, err)
		}
	}
	if got, err := PipePackets(&pipe_data.PipeDataEntry{Bytes: proto.Uint32(3)}); got != nil || err != nil {
		t.Errorf("a stream: %v, %v", got, err)
	}
}
