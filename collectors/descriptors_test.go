package collectors

import (
	"os"
	"path/filepath"
	"testing"

	"cryo/internal/procfs"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestProbe compares what is known of descriptors with and without reading fdinfo.
func TestProbe(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string, flags int) func() (int, error) {
		return func() (int, error) { return unix.Open(name, flags, 0) }
	}
	task := &Task{Pid: os.Getpid()}
	var err error
	if task.Proc, err = procfs.OpenTask(task.Pid); err != nil {
		t.Fatal(err)
	}
	defer task.Close()
	pr, err := NewProber(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	for what, make := range map[string]func() (int, error){
		"file": open(name, unix.O_RDWR|unix.O_CLOEXEC), "log": open(name, unix.O_WRONLY|unix.O_APPEND), "handle": open(name, unix.O_PATH),
		"directory": open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY), "device": open(os.DevNull, unix.O_RDWR|unix.O_NONBLOCK),
		"proc":   open("/proc/self/stat", unix.O_RDONLY),
		"event":  func() (int, error) { return unix.Eventfd(3, unix.EFD_CLOEXEC) },
		"socket": func() (int, error) { return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) },
		"pipe": func() (int, error) {
			var p [2]int
			err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
			unix.Close(p[1])
			return p[0], err
		},
	} {
		t.Run(what, func(t *testing.T) {
			fd, err := make()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			unix.Seek(fd, 42, unix.SEEK_SET) // what cannot be positioned stays where it is
			var seen [2]Probe
			for i := range seen {
				seen[i] = Probe{Task: task, FD: fd}
				if err := pr.probe(&seen[i], i == 1); err != nil {
					t.Fatal(err)
				}
			}
			slow, quick := &seen[0], &seen[1]
			if want := slow.Info.Flags &^ unix.O_CLOEXEC; slow.Flags != want || quick.Flags != want {
				t.Errorf("flags %#o and %#o, not %#o", slow.Flags, quick.Flags, want)
			}
			rest := string(slow.Info.Rest)
			if what == "socket" {
				rest = "" // the number of descriptors on their way, which is not needed
			}
			if slow.Info.Pos != quick.Info.Pos || rest != string(quick.Info.Rest) {
				t.Errorf("position %d, not %d; %q, not %q", quick.Info.Pos, slow.Info.Pos, quick.Info.Rest, rest)
			}
			mounts := [2]int{}
			for i := range seen {
				if mounts[i], err = seen[i].mount(); err != nil {
					t.Error(err)
				}
			}
			if mounts[0] != mounts[1] {
				t.Errorf("on mounts %v", mounts)
			}
			theirs, err := task.Proc.Readlink(slow.entry())
			link, lerr := quick.Link()
			if err != nil || lerr != nil || link != theirs {
				t.Errorf("path %q, not %q: %v, %v", link, theirs, err, lerr)
			}
			if diff := cmp.Diff(slow.Stat, quick.Stat); diff != "" {
				t.Error(diff)
			}
		})
	}
}
