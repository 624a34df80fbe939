package features

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cryo/internal/iouring"
	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// What is told of files and mounts, and how they are made again.
var (
	MntID         = define("mnt_id", Extra, "3.15", "know the mount of an open file", probeMntID)
	FdinfoLock    = define("fdinfo_lock", Extra, "4.1", "know which descriptor holds a lock", probeFdinfoLock)
	GetOwnerUIDs  = define("fcntl_getowner_uids", Required, "3.5", "know who asked for signals of a descriptor", probeOwnerUIDs)
	Openat2       = define("openat2", Extra, "5.6", "open without leaving a directory", probeOpenat2)
	MountSetGroup = define("move_mount_set_group", Extra, "5.15", "restore which mounts share", probeMountSetGroup)
	OverlayMaps   = define("overlayfs_maps", Extra, "6.8", "the same file in mappings and descriptors on overlayfs", probeOverlayMaps)
	Autofs        = define("autofs", Experimental, "4.4", "the pipe of an autofs mount", probeAutofs)
	IOURing       = define("io_uring", Extra, "5.11", "restore rings for requests", probeIOURing)
	TTYLock       = define("tty_lock", ByName, "", "terminals that cannot be opened by others meanwhile", probeTTYLock)
)

// probeIOURing makes a ring; sandboxes and the setting kernel.io_uring_disabled forbid that. Rings are told enough of since
// Linux 5.11, which lets SQPOLL do without registered files.
func probeIOURing() error {
	p := &iouring.Params{}
	fd, err := iouring.Setup(1, p)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: it is forbidden here, see the setting kernel.io_uring_disabled", err)
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func probeMntID() error { return contains("/proc/self/fdinfo/0", "mnt_id:\t") }

func probeFdinfoLock() error {
	fd, err := unix.MemfdCreate("criu-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return os.NewSyscallError("flock", err)
	}
	return contains(fmt.Sprintf("/proc/self/fdinfo/%d", fd), "lock:\t")
}

func probeOwnerUIDs() error {
	f, err := os.Open("/proc/self/comm")
	if err != nil {
		return err
	}
	defer f.Close()
	return fcntlOwnerUIDs(f.Fd())
}

func probeOpenat2() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	return unix.Close(fd)
}

// probeMountSetGroup moves nothing to nowhere: a kernel that knows the flag objects to the descriptors.
func probeMountSetGroup() error {
	err := unix.MoveMount(-1, "", -1, "", unix.MOVE_MOUNT_SET_GROUP|unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return refusedWith("move_mount", err, unix.EBADF)
}

// probeOverlayMaps maps a file of an overlay in a mount namespace of its own and compares what maps and stat say.
func probeOverlayMaps() error {
	return inNewMounts(func() error {
		const base = "/tmp"
		if err := unix.Mount("criu-probe", base, "tmpfs", 0, "size=1m"); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
		for _, d := range []string{"l", "u", "w", "m"} {
			if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
				return err
			}
		}
		merged := filepath.Join(base, "m")
		layers := "lowerdir=" + base + "/l,upperdir=" + base + "/u,workdir=" + base + "/w"
		if err := unix.Mount("criu-probe", merged, "overlay", 0, layers); err != nil {
			return fmt.Errorf("mount overlay: %w", err)
		}
		return sameInMaps(filepath.Join(merged, "file"))
	})
}

// sameInMaps makes a file and compares what a mapping of it and stat say it is.
func sameInMaps(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer unix.Munmap(page)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	self, err := procfs.OpenThread(os.Getpid(), unix.Gettid())
	if err != nil {
		return err
	}
	defer self.Close()
	text, err := self.ReadList("maps")
	if err != nil {
		return err
	}
	want := fmt.Sprintf(" %02x:%02x %d ", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, mapsPrefix(page)) {
			if strings.Contains(line, want) {
				return nil
			}
			return fmt.Errorf("a mapping says %q where stat says %q", strings.TrimSpace(line), want)
		}
	}
	return errors.New("the mapping is not listed")
}

// probeAutofs mounts an autofs in a mount namespace of its own and looks for its pipe in the mount's options.
func probeAutofs() error {
	return inNewMounts(func() error {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		defer w.Close()
		opts := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", w.Fd(), unix.Getpgrp())
		if err := unix.Mount("criu-probe", "/tmp", "autofs", 0, opts); err != nil {
			return fmt.Errorf("mount autofs: %w", err)
		}
		defer unix.Unmount("/tmp", unix.MNT_DETACH)
		return contains("/proc/thread-self/mountinfo", "pipe_ino=")
	})
}

// probeTTYLock locks a terminal and tries to open it.
func probeTTYLock() error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 1); err != nil {
		return os.NewSyscallError("ioctl(TIOCSPTLCK)", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return os.NewSyscallError("ioctl(TIOCGPTN)", err)
	}
	slave, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(slave)
	}
	return refusedWith("open of a locked terminal", err, unix.EIO)
}
