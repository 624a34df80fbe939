package features

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// What concerns credentials, filters and security modules.
var (
	SeccompSuspend = define("seccomp_suspend", Extra, "4.3", "work inside tasks that are filtered", probeSeccompSuspend)
	SeccompFilters = define("seccomp_filters", Extra, "4.4", "read seccomp filters", probeSeccompFilters)
	Loginuid       = define("loginuid", Extra, "3.13", "keep the login user id", probeLoginuid)
	ApparmorStack  = define("apparmor_stacking", ByName, "4.13", "AppArmor profiles on top of each other", probeApparmor).usedBy(options.LSM)
	SysResource    = define("cap_sys_resource", ByName, "", "raise hard limits and change limits of other users' tasks",
		func() error { return effective(unix.CAP_SYS_RESOURCE) })
	CheckpointRestore = define("cap_checkpoint_restore", ByName, "5.9", "checkpoint and restore without CAP_SYS_ADMIN",
		func() error { return effective(unix.CAP_CHECKPOINT_RESTORE) })
)

// effective asks whether this process has a capability and may use it.
func effective(capability int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if data[capability/32].Effective&(1<<(capability%32)) == 0 {
		return errors.New("the capability is not effective")
	}
	return nil
}

func probeSeccompSuspend() error {
	return withTracee(func(pid int) error {
		_, err := ptrace(unix.PTRACE_SETOPTIONS, pid, 0, unix.PTRACE_O_SUSPEND_SECCOMP|unix.PTRACE_O_EXITKILL)
		return err
	})
}

// probeSeccompFilters reads the filter of a child. Who reads must not be filtered itself, so the child is made by a
// thread that is, and read by one that is not.
func probeSeccompFilters() error {
	made, finished := make(chan int), make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		failed <- onThread(func() error {
			pid, err := startFiltered()
			if err != nil {
				return err
			}
			defer reap(pid)
			made <- pid
			<-finished
			return nil
		})
	}()
	select {
	case err := <-failed:
		return err
	case pid := <-made:
		err := onThread(func() error { return readFilter(pid) })
		close(finished)
		return errors.Join(err, <-failed)
	}
}

// startFiltered puts a filter that allows everything on this thread and makes a stopped, untraced child under it.
func startFiltered() (int, error) {
	allow := [1]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	prog := unix.SockFprog{Len: uint16(len(allow)), Filter: &allow[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)
	}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	if err != nil {
		return 0, os.NewSyscallError("prctl(PR_SET_SECCOMP)", err)
	}
	pid, err := startStopped()
	if err != nil {
		return 0, err
	}
	if _, err := ptrace(unix.PTRACE_DETACH, pid, 0, uintptr(unix.SIGSTOP)); err != nil {
		reap(pid)
		return 0, err
	}
	return pid, nil
}

func readFilter(pid int) error {
	if _, err := ptrace(unix.PTRACE_SEIZE, pid, 0, unix.PTRACE_O_EXITKILL); err != nil {
		return err
	}
	if _, err := ptrace(unix.PTRACE_INTERRUPT, pid, 0, 0); err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := wait(pid, &ws); err != nil || !ws.Stopped() {
		return fmt.Errorf("child did not stop: status %#x, %v", uint32(ws), err)
	}
	n, err := ptrace(unix.PTRACE_SECCOMP_GET_FILTER, pid, 0, 0)
	if err == nil && n != 1 {
		return fmt.Errorf("the filter has %d instructions, not 1", n)
	}
	return err
}

// probeLoginuid takes the login user id off a thread and puts it back.
func probeLoginuid() error {
	return onThread(func() error {
		const path, unset = "/proc/thread-self/loginuid", "4294967295"
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(unset), 0); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(strings.TrimSpace(string(old))), 0)
	})
}

func probeApparmor() error {
	return contains("/sys/kernel/security/apparmor/features/domain/stack", "yes")
}
