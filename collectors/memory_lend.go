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
// task is killed; no task may go on and write to it. One of a copy stays what it is whatever the task does: that gets a copy of its
// own when it writes, because the page is referred to (Linux 5.9; huge pages 5.18, and before while the copy lives).
//
// The pipe is opened by the tool's link in /proc, for reading too, so that the end of the tool does not make a signal. Nothing of
// the task is charged with it.
type lender struct {
	*pagecopy.Task
	session *remote.Session
	by      *SelfWriting
	ready   func() bool
	failed  atomic.Bool
}

// lender returns nil if the task may not lend its pages. Its copy, which is nil if there is none, always may. Whether it can is
// found out when there is much to move.
func (by *SelfWriting) lender(src *pagecopy.Task, t *Task, from *memoryCopy) *lender {
	switch {
	case by == nil:
		return nil
	case from != nil:
		return by.lenderIn(from.session, src, func() bool { return by.mayOpen(t) })
	case t.Session == nil || by.Lends == nil || !by.Lends():
		return nil
	}
	return by.lenderIn(t.Session, src, func() bool { return t.Session.CrashSafe() && by.mayOpen(t) })
}

func (by *SelfWriting) lenderIn(s *remote.Session, src *pagecopy.Task, may func() bool) *lender {
	return &lender{Task: src, session: s, by: by, ready: sync.OnceValue(func() bool { return arch.HasCRC() && may() })}
}

// Ready says whether the task can lend. One that could not once is not asked again.
func (l *lender) Ready() bool { return l.ready() && !l.failed.Load() }

// LendPages runs the program.
func (l *lender) LendPages(lots []pagecopy.Lot) (err error) {
	defer func() {
		if err != nil {
			l.failed.Store(true)
		}
	}()
	b := remote.NewBuilder("lend pages")
	parts := make([]lentPart, len(lots))
	for i := range lots {
		parts[i] = lendPart(b, &lots[i])
	}
	res, err := l.by.run(l.session, b.Program())
	if err != nil {
		return err
	}
	for i := range lots {
		if err := parts[i].sum(res, &lots[i]); err != nil {
			return fmt.Errorf("task %d: %w", l.PID(), err)
		}
	}
	return nil
}

// lentPart is what a program says of one lot.
type lentPart struct {
	moved remote.Op
	lanes []remote.Ref // registers of the checksums of each range
}

// lendPart adds to a program what one lot takes. Nothing is left open behind it.
func lendPart(b *remote.Builder, lot *pagecopy.Lot) (p lentPart) {
	fd := b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), lot.Pipe())),
		remote.Imm(unix.O_RDWR|unix.O_CLOEXEC), remote.Imm(0)).Must()
	iov := make([]byte, 0, 16*len(lot.Ranges))
	for _, r := range lot.Ranges {
		iov = binary.NativeEndian.AppendUint64(iov, r.Addr)
		iov = binary.NativeEndian.AppendUint64(iov, r.Len)
		lanes := b.Zero(8 * remote.CRCLanes)
		b.CRC32C(remote.Imm(r.Addr), remote.Imm(r.Len/remote.CRCLanes), lanes)
		p.lanes = append(p.lanes, lanes)
	}
	p.moved = b.Call(unix.SYS_VMSPLICE, fd, b.Bytes(iov), remote.Imm(len(lot.Ranges)), remote.Imm(unix.SPLICE_F_NONBLOCK))
	b.Call(unix.SYS_CLOSE, fd)
	return p
}

// sum puts the checksums of a lot together.
func (p lentPart) sum(res *remote.Results, lot *pagecopy.Lot) error {
	size := uint64(0)
	for i, r := range lot.Ranges {
		size += r.Len
		for lane := range remote.CRCLanes {
			lot.Sum = checksum.Join(lot.Sum, uint32(res.Uint64(p.lanes[i].At(8*lane))), r.Len/remote.CRCLanes)
		}
	}
	if n, err := res.Value(p.moved); err != nil || uint64(n) != size {
		return fmt.Errorf("%d of %d bytes went into a pipe: %w", n, size, err)
	}
	return nil
}
