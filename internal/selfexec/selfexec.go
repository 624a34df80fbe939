// Package selfexec starts this executable once more, as one of the small processes that work beside the tool or outlive it:
// the guardian, the keeper of memory tracking, the server of a lazy restore, a page server, the worker of a service. Each is known by its argv[0], which stands for
// what it is in /proc and tells main what to do.
//
// Nothing of it needs more than Linux has always had. It touches no image.
package selfexec

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Path is this executable, whatever became of its name.
const Path = "/proc/self/exe"

// Process is what is to be started.
type Process struct {
	Name  string // argv[0], all there is of it
	Dir   string
	Env   []string
	Files []uintptr // descriptors, from 0 on
	// As is the user it becomes, nil for the one of this process, and Keep are the capabilities it has then.
	As   *syscall.Credential
	Keep []uintptr
}

// Start starts it from exe, which is Path but for a stand-in, in a session of its own, and returns its pid. Whoever starts
// it is its parent.
func (p Process) Start(exe string) (pid int, err error) {
	return syscall.ForkExec(exe, []string{p.Name}, &syscall.ProcAttr{
		Dir: p.Dir, Env: p.Env, Files: p.Files, Sys: &syscall.SysProcAttr{Setsid: true, Credential: p.As, AmbientCaps: p.Keep},
	})
}

// Forget reaps a process whose end is nobody's business.
func Forget(pid int) {
	go func() { // a library lives on and is its parent
		if p, err := os.FindProcess(pid); err == nil {
			p.Wait()
		}
	}()
}

// Is says whether this process was started under a name.
func Is(name string) bool { return len(os.Args) == 1 && os.Args[0] == name }

// Become has this process settle down under its name: nothing is open but descriptors up to last, which were meant for it.
func Become(name string, last int) {
	closeInherited(last)
	os.WriteFile("/proc/self/comm", []byte(name), 0) // else it is called "exe", which only looks odd
}

// closeInherited closes what the process that started this one had open without close-on-exec, but for descriptors up to
// last. What is close-on-exec was opened since, by the Go runtime.
func closeInherited(last int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= last {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}
