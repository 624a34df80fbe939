package fhandle

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpen finds a file by its handle that has been renamed since.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, name, 0)
	if err != nil {
		t.Skipf("no handles on the filesystem of %s: %v", dir, err)
	}
	e, err := Parse(uint32(h.Size()), uint32(h.Type()), hex.EncodeToString(h.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "b"), &st); err != nil {
		t.Fatal(err)
	}
	mounts, err := Mounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := Open(mounts, "", StatDev(st.Dev), st.Ino, e)
	if errors.Is(err, ErrNotFound) && unix.Geteuid() != 0 {
		t.Skip("needs CAP_DAC_READ_SEARCH")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := Open(mounts, "", StatDev(st.Dev), st.Ino+1, e); !errors.Is(err, ErrNotFound) {
		t.Errorf("another inode: %v", err)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		size uint32
		text string
		ok   bool
	}{{8, "a3c4030000000000", true}, {0, "", true}, {129, "00", false}, {8, "xy", false}} {
		if e, err := Parse(c.size, 1, c.text); (err == nil) != c.ok || c.ok && len(e.Handle) != words {
			t.Errorf("Parse(%d, %q): %v, %v", c.size, c.text, e, err)
		}
	}
}
