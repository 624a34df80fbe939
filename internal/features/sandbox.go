package features

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// onThread runs f on an OS thread that is thrown away afterwards, with whatever f did to it: namespaces it left,
// filters it took on. The main thread is never used, because /proc/self shows it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f) // this goroutine holds the main thread meanwhile
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// inNewMounts runs f in a mount namespace of its own, from which nothing gets out.
func inNewMounts(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("new mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}

// withTracee runs f with the pid of a child that stands at its first instruction, traced by the thread that f runs on.
// The child is this program, but it is killed before it runs.
func withTracee(f func(pid int) error) error {
	return onThread(func() error {
		pid, err := startStopped()
		if err != nil {
			return err
		}
		defer reap(pid)
		return f(pid)
	})
}

// startStopped makes the child of [withTracee], traced by this thread.
func startStopped() (int, error) {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"criu-probe"}, &syscall.ProcAttr{
		Env: []string{"PATH=/"},
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, os.NewSyscallError("fork", err)
	}
	var ws unix.WaitStatus
	if _, err := wait(pid, &ws); err != nil || !ws.Stopped() {
		reap(pid)
		return 0, fmt.Errorf("child did not stop: status %#x, %v", uint32(ws), err)
	}
	return pid, nil
}

func reap(pid int) {
	unix.Kill(pid, unix.SIGKILL)
	for {
		var ws unix.WaitStatus
		if _, err := wait(pid, &ws); err != nil || ws.Exited() || ws.Signaled() {
			return
		}
	}
}

func wait(pid int, ws *unix.WaitStatus) (int, error) {
	for {
		n, err := unix.Wait4(pid, ws, unix.WALL, nil)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// ptrace is the raw call.
func ptrace(request, pid int, addr, data uintptr) (uintptr, error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	if errno != 0 {
		return 0, os.NewSyscallError("ptrace", errno)
	}
	return r, nil
}

// refusedWith turns a call that is to be refused in a certain way into a verdict: the kernel knows the request if it
// objects to its arguments.
func refusedWith(call string, got error, telling ...unix.Errno) error {
	for _, t := range telling {
		if got == t {
			return nil
		}
	}
	if got == nil {
		return fmt.Errorf("%s took what it should refuse", call)
	}
	return os.NewSyscallError(call, got)
}
