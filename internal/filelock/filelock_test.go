package filelock

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]*Lock{
		"1: FLOCK  ADVISORY  READ 9543 fe:00:9978212 0 EOF":    {Kind: Flock},
		"2: POSIX  ADVISORY  WRITE 9543 fe:00:9978212 5 14":    {Kind: POSIX, Type: 1, Start: 5, Len: 10},
		"3: OFDLCK ADVISORY  WRITE -1 fe:00:9978212 20 EOF":    {Kind: OFD, Type: 1, Start: 20},
		"1: LEASE  BREAKING  UNLCK 9543 fe:00:9978228 0 EOF":   {Kind: Lease, Type: 2, Breaking: true},
		"1: LEASE  ACTIVE    WRITE 9543 fe:00:9978228 0 EOF":   {Kind: Lease, Type: 1},
		"1: DELEG  ACTIVE    READ 9543 fe:00:9978228 0 EOF":    nil,
		"1: POSIX  ADVISORY  WRITE 9543 fe:00:9978212 5 4":     nil,
		"1: -> FLOCK  ADVISORY  READ 9543 fe:00:9978212 0 EOF": nil,
		"": nil,
	} {
		got, err := Parse(line)
		if (err == nil) != (want != nil) {
			t.Errorf("Parse(%q): %v", line, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Parse(%q): %s", line, diff)
		}
	}
}

func TestParseLocked(t *testing.T) {
	files, err := parseLocked("1: POSIX  ADVISORY  WRITE 9543 fe:01:42 5 14\n1: -> POSIX  ADVISORY  WRITE 9544 fe:01:43 5 14\n" +
		"2: FLOCK  ADVISORY  READ 0 00:1b:7 0 EOF\n3: LEASE  ACTIVE    READ 1 <none>:0 0 EOF\n")
	if err != nil {
		t.Fatal(err)
	}
	want := Files{{unix.Mkdev(0xfe, 1), 42}: true, {unix.Mkdev(0, 0x1b), 7}: true}
	if diff := cmp.Diff(want, files, cmp.AllowUnexported(file{})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"1: POSIX\n", "1: POSIX  ADVISORY  WRITE 9543 x 5 14\n"} {
		if _, err := parseLocked(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestLocked finds a lock that is taken here.
func TestLocked(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Flock(int(f.Fd()), unix.LOCK_EX)); err != nil {
		t.Fatal(err)
	}
	files, err := Locked()
	if err != nil {
		t.Skip(err)
	}
	if !files.Has(st.Dev, st.Ino) || files.Has(st.Dev, st.Ino+1) {
		t.Errorf("the lock of %d:%d is not in %v", st.Dev, st.Ino, files)
	}
}
