package stages

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemoveSegment(t *testing.T) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Skip("no SysV memory: ", err)
	}
	defer unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	for _, test := range []struct {
		what    string
		creator int
		gone    bool
	}{
		{"another's", os.Getpid() + 1, false},
		{"our own", os.Getpid(), true},
		{"one that has gone", os.Getpid(), true},
	} {
		data, err := json.Marshal(removeSegment{ID: id, Creator: test.creator})
		if err != nil {
			t.Fatal(err)
		}
		if err := doRemoveSegment(context.Background(), data, nil); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
		if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, new(unix.SysvShmDesc)); (err != nil) != test.gone {
			t.Errorf("%s: %v", test.what, err)
		}
	}
}
