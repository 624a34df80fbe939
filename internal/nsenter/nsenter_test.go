package nsenter

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNet makes a namespace and looks where things happen.
func TestNet(t *testing.T) {
	ns, err := NewNet()
	if err != nil {
		t.Skipf("network namespaces: %v", err)
	}
	defer ns.Close()
	inode := func(path string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Error(err)
		}
		return st.Ino
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	own := inode("/proc/self/ns/net")
	if st.Ino == own {
		t.Fatal("the namespace is the test's own")
	}
	for _, place := range []struct {
		ns   *os.File
		want uint64
	}{{ns, st.Ino}, {nil, own}} {
		var at uint64
		if err := Net(place.ns, func() error { at = inode(ownNet); return nil }); err != nil || at != place.want {
			t.Errorf("done in namespace %d and not %d: %v", at, place.want, err)
		}
	}
	err = onThread(func() error {
		back, err := Hop(ns)
		if err != nil {
			return err
		}
		there := inode(ownNet)
		err = back()
		if here := inode(ownNet); there != st.Ino || here != own {
			t.Errorf("hopped from %d to %d and back to %d", own, there, here)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
