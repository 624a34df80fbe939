package collectors

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"cryo/arch"
	"cryo/internal/checksum"
	"cryo/internal/pagecopy"
	"cryo/internal/remote"

	"golang.org/x/sys/unix"
)

// lender has a task put its own pages into a pipe of the tool's (vmsplice(2)), by a program that opens it, and makes the checksum
// of them first: nobody copies them before the reader of the stream does. A page that is referred to stays what it is when its
// task is killed; no task may go on and write to it.
//
// The pipe is opened by the tool's link in /proc, for reading too, so that the end of the tool does not make a signal. Nothing of
// the task is charged with it.
type lender struct {
	*pagecopy.Task
	task   *Task
	by     *SelfWriting
	ready  func() bool
	failed atomic.Bool
}

// lender returns nil if tasks may not lend their pages. Whether this one can is found out when there is much to move.
func (by *SelfWriting) lender(src *pagecopy.Task, t *Task) *lender {
	if by == nil || t.Session == nil || by.Lends == nil || !by.Lends() {
		return nil
	}
	l := &lender{Task: src, task: t, by: by}
	l.ready = sync.OnceValue(func() bool { return arch.HasCRC() && by.mayOpen(t) })
	return l
}

// Ready says whether the task can lend. One that could not once is not asked again.
func (l *lender) Ready() bool { return l.ready() && !l.failed.Load() }

// LendPages runs the program.
func (l *lender) LendPages(pipe int, ranges []pagecopy.Range, seed uint32) (sum uint32, err error) {
	defer func() {
		if err != nil {
			l.failed.Store(true)
		}
	}()
	b := remote.NewBuilder("lend pages")
	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pipe)),
		remote.Imm(unix.O_RDWR|unix.O_CLOEXEC), remote.Imm(0)).Must()
	iov, size := make([]byte, 0, 16*len(ranges)), uint64(0)
	lanes := make([]remote.Ref, len(ranges))
	for i, r := range ranges {
		iov = binary.NativeEndian.AppendUint64(iov, r.Addr)
		iov = binary.NativeEndian.AppendUint64(iov, r.Len)
		lanes[i] = b.Zero(8 * remote.CRCLanes)
		b.CRC32C(remote.Imm(r.Addr), remote.Imm(r.Len/remote.CRCLanes), lanes[i])
		size += r.Len
	}
	lent := b.Call(unix.SYS_VMSPLICE, fd, b.Bytes(iov), remote.Imm(len(ranges)), remote.Imm(unix.SPLICE_F_NONBLOCK))
	b.Call(unix.SYS_CLOSE, fd)
	res, err := l.by.run(l.task, b.Program())
	if err != nil {
		return 0, err
	}
	if n, err := res.Value(lent); err != nil || uint64(n) != size {
		return 0, fmt.Errorf("task %d put %d of %d bytes into a pipe: %w", l.task.Pid, n, size, err)
	}
	sum = seed
	for i, r := range ranges {
		for lane := range remote.CRCLanes {
			register := binary.NativeEndian.Uint64(res.Bytes(lanes[i].At(8 * lane)))
			sum = checksum.Join(sum, uint32(register), r.Len/remote.CRCLanes)
		}
	}
	return sum, nil
}
