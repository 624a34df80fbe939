package poll

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestNow(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	for _, step := range []struct {
		do   func() error
		want int16
	}{
		{func() error { return nil }, 0},
		{func() error { _, err := unix.Write(p[1], []byte{1}); return err }, unix.POLLIN},
		{func() error { return unix.Close(p[1]) }, unix.POLLIN | unix.POLLHUP},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got, err := Now(p[0], unix.POLLIN|unix.POLLOUT); err != nil || got != step.want {
			t.Errorf("ready for %#x, not %#x: %v", got, step.want, err)
		}
	}
}
