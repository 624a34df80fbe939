package guardian

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"cryo/internal/remote"
	"cryo/internal/selfexec"
)

// A sentry stands in for the guardian until one is needed, which is almost never: an executable of a few pages that holds
// the guardian's descriptors, waits, and then becomes the guardian by exec. It is there in a fraction of the time in
// which the Go runtime starts, and what the ward sends meanwhile waits in the socket.

// What a sentry has besides the guardian's descriptors. The exec closes them.
const (
	bellFD = 5 // pipe: the ward wants the guardian now
	exeFD  = 6 // this executable
	lastFD = exeFD
)

// guardianEnv is the environment of a guardian, which has little to do.
var guardianEnv = []string{"GOMAXPROCS=2"}

// sentryProgram is what a sentry does. All signals are blocked, and the guardian finds them so.
var sentryProgram = sync.OnceValue(func() *remote.Program {
	b := remote.NewBuilder("stand in for the guardian")
	name, all := b.String(argv0), b.Bytes(allSignals())
	b.Call(unix.SYS_RT_SIGPROCMASK, remote.Imm(unix.SIG_SETMASK), all, remote.Imm(0), remote.Imm(8)).Discard()
	b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_SET_NAME), name).Discard()
	for _, fd := range []int{bellFD, exeFD} {
		b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETFD), remote.Imm(unix.FD_CLOEXEC)).Discard()
	}
	become, wait := b.NewLabel(), b.NewLabel()
	// What else the ward had open is none of ours. A kernel before 5.9 leaves that to the guardian.
	closed := b.Call(unix.SYS_CLOSE_RANGE, remote.Imm(lastFD+1), remote.Imm(^uint32(0)), remote.Imm(0))
	b.JumpIf(closed, remote.Ne, remote.Imm(0), become)
	b.Label(wait)
	signs := b.InOut(pollFDs(bellFD, wardFD))
	seen := b.Call(unix.SYS_PPOLL, signs, remote.Imm(2), remote.Imm(0), remote.Imm(0), remote.Imm(8))
	b.JumpIf(seen, remote.Less, remote.Imm(1), wait)
	b.Label(become)
	argv, env := b.Zero(16), b.Zero(8*(len(guardianEnv)+1))
	b.Store(argv, name)
	for i, v := range guardianEnv {
		b.Store(env.At(8*i), b.String(v))
	}
	b.Call(unix.SYS_EXECVEAT, remote.Imm(exeFD), b.String(""), argv, env, remote.Imm(unix.AT_EMPTY_PATH)).Discard()
	b.Call(unix.SYS_EXIT_GROUP, remote.Imm(1)).Discard()
	return b.Program()
})

func allSignals() []byte { return binary.NativeEndian.AppendUint64(nil, ^uint64(0)) }

// pollFDs is an array of struct pollfd that waits for input, or the end, of descriptors.
func pollFDs(fds ...uint32) (b []byte) {
	for _, fd := range fds {
		b = binary.NativeEndian.AppendUint32(b, fd)
		b = binary.NativeEndian.AppendUint32(b, unix.POLLIN) // events in the lower half of the word, revents in the upper
	}
	return b
}

// startSentry starts a sentry with the given descriptors from 0 on.
func startSentry(fds []uintptr) (pid int, err error) {
	image, err := remote.Executable(sentryProgram())
	if err != nil {
		return 0, err
	}
	exe, err := remote.ExecutableMemfd("guardian", image)
	if err != nil {
		return 0, err
	}
	defer unix.Close(exe)
	return start(fmt.Sprintf("/proc/self/fd/%d", exe), fds)
}

// start starts a guardian or its sentry.
func start(exe string, fds []uintptr) (pid int, err error) {
	return selfexec.Process{Name: argv0, Dir: "/", Env: guardianEnv, Files: fds}.Start(exe)
}

// Is says whether a process, or the process of a thread, is a guardian or its sentry.
func Is(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && string(cmdline) == argv0+"\x00"
}

// openExe opens this process's executable so that it can still be executed when its file has been replaced.
func openExe() (*os.File, error) { return os.OpenFile(selfexec.Path, unix.O_PATH, 0) }
