package collectors

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"cryo/internal/pagecopy"
	"cryo/internal/procfs"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// selfWriter lets a task write its own pages into the pages file: one program opens the file, writes and closes it, so
// that nothing is left open in the task should the tool die on the way; it then finishes that one write and goes on.
//
// The file is opened by the tool's link in /proc, which takes a task that sees the tool's /proc and may open it. The
// task's memory cgroup is charged for page cache it makes, its limits of file size apply, and its seccomp rules come
// back into force when the tool dies: where any of these matters the tool does all the reading and writing.
type selfWriter struct {
	*pagecopy.Task
	task  *Task
	by    *SelfWriting
	mu    sync.Mutex
	ready func() bool
}

// SelfWriting is what lets tasks write their own pages, one at a time: there is one thread that traces them.
type SelfWriting struct {
	trace  func(func() error) error
	turn   chan struct{}
	links  map[string]string // the tool's own procLinks
	groups string            // its control groups, as /proc tells them

	// Lends says whether pages of a task, and not of a copy of it, may go into a pipe by reference: no task writes to them again.
	// nil: they may not.
	Lends func() bool
}

// procLinks are those below /proc/PID that say whether two processes see the same /proc.
var procLinks = []string{"ns/pid", "ns/mnt", "ns/user", "root"}

// NewSelfWriting takes a function that runs another one on the thread that traces the tasks.
func NewSelfWriting(trace func(func() error) error) *SelfWriting {
	by := &SelfWriting{trace: trace, turn: make(chan struct{}, 1), links: map[string]string{}}
	for _, name := range procLinks {
		by.links[name], _ = os.Readlink("/proc/self/" + name) // "" is like nobody's
	}
	groups, _ := os.ReadFile("/proc/self/cgroup")
	by.groups = string(groups)
	return by
}

// writer returns nil if the task cannot write by itself. Whether it may is found out when there is much to write.
func (by *SelfWriting) writer(src *pagecopy.Task, t *Task) *selfWriter {
	if by == nil || t.Session == nil {
		return nil
	}
	w := &selfWriter{Task: src, task: t, by: by}
	w.ready = sync.OnceValue(func() bool { return by.mayWrite(t) })
	return w
}

// Ready says whether the task may write by itself.
func (w *selfWriter) Ready() bool { return w.ready() }

// mayWrite says whether nothing of the task stands against its writing a file. What cannot be found out does.
func (by *SelfWriting) mayWrite(t *Task) bool {
	if !t.Session.CrashSafe() || !by.mayOpen(t) {
		return false
	}
	limits, err := t.Proc.Limits()
	if err != nil || limits[unix.RLIMIT_FSIZE].Cur != procfs.Infinity {
		return false
	}
	free, err := by.cgroupUnlimited(t)
	return err == nil && free
}

// mayOpen says whether a task may open what the tool has open.
func (by *SelfWriting) mayOpen(t *Task) bool { return filterless(t) && by.seesSameProc(t) }

// mayRun says whether a task may run programs that take long: it goes on by itself if the tool dies meanwhile.
func mayRun(t *Task) bool { return t.Session.CrashSafe() && filterless(t) }

// filterless says whether no filter of the task's own stands in the way of system calls.
func filterless(t *Task) bool { return t.Status != nil && t.Status.Seccomp == 0 }

// seesSameProc says whether /proc/PID means the same to the task and to the tool.
func (by *SelfWriting) seesSameProc(t *Task) bool {
	for _, name := range procLinks {
		if theirs, err := t.Proc.Readlink(name); err != nil || theirs != by.links[name] {
			return false
		}
	}
	return by.links["root"] == "/"
}

// WritePages runs the program. A failure of any kind is no error: what is missing is written by the tool. So it is while
// another task has its turn, because two tasks have two files and there is more than one processor.
func (w *selfWriter) WritePages(f *os.File, ranges []pagecopy.Range, off int64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.by.turn <- struct{}{}:
		defer func() { <-w.by.turn }()
	default:
		return 0
	}
	iov := make([]byte, 0, 16*len(ranges))
	for _, r := range ranges {
		iov = binary.NativeEndian.AppendUint64(iov, r.Addr)
		iov = binary.NativeEndian.AppendUint64(iov, r.Len)
	}
	b := remote.NewBuilder("write pages")
	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())),
		remote.Imm(unix.O_WRONLY|unix.O_CLOEXEC), remote.Imm(0)).Must()
	written := b.Call(unix.SYS_PWRITEV, fd, b.Bytes(iov), remote.Imm(len(ranges)), remote.Imm(off), remote.Imm(0))
	b.Call(unix.SYS_CLOSE, fd)
	res, err := w.by.run(w.task.Session, b.Program())
	if err != nil {
		return 0
	}
	n, err := res.Value(written)
	if err != nil {
		return 0
	}
	return n
}

// run runs a program on the thread that traces its task.
func (by *SelfWriting) run(s *remote.Session, p *remote.Program) (res *remote.Results, err error) {
	err = by.trace(func() error {
		res, err = s.Run(p)
		return err
	})
	return res, err
}
