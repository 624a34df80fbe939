package collectors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"cryo/internal/filelock"
	"cryo/internal/objid"
	"cryo/internal/procfs"
	"cryo/internal/remote"
	"cryo/internal/spread"

	"golang.org/x/sys/unix"
)

// Prober asks what descriptors are. It may be used by several goroutines at once.
//
// Where there are many, what a duplicate tells is asked of a duplicate: that takes a few short system calls, where an
// entry of /proc/PID/fdinfo or fd has to be looked up, made, and taken apart again when the task ends. fdinfo is read
// then for what only it tells: the state of files that are no files of a file system, and locks. Whether a descriptor is
// closed on exec is asked of the task itself, see [askDescriptors].
type Prober struct {
	askers []Asker
	links  int // /proc/self/fd

	met    atomic.Int64  // descriptors so far
	list   sync.Once     // begins to list locks
	listed chan struct{} // closed when locked and lockedErr are set

	locked    filelock.Files
	lockedErr error
}

// manyDescriptors is how many it takes for the list of all locks to be worth its time. The kernel makes everybody who
// locks a file wait for that, and waits some milliseconds itself first.
const manyDescriptors = 512

// NewProber returns a Prober for one dump with the given kinds.
func NewProber(kinds []Kind) (*Prober, error) {
	links, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/self/fd: %w", err)
	}
	pr := &Prober{links: links, listed: make(chan struct{})}
	for _, k := range kinds {
		if a, ok := k.Collector.(Asker); ok {
			pr.askers = append(pr.askers, a)
		}
	}
	return pr, nil
}

// Close gives back what the Prober holds.
func (pr *Prober) Close() { unix.Close(pr.links) }

// probeChunk is how many descriptors one worker takes at a time.
const probeChunk = 128

// FDs asks what every descriptor of the task is, in the order of their numbers. The descriptors of a large task are
// split among all processors.
func (pr *Prober) FDs(t *Task) ([]*Probe, error) {
	fds, count, err := numbers(t)
	if err != nil || count == 0 {
		return nil, err
	}
	if _, err := t.Pidfd(); err != nil { // the workers share it
		return nil, err
	}
	quick := pr.mayBeQuick(count)
	var found atomic.Int64
	probes := make([]*Probe, len(fds))
	err = spread.Range(len(fds), probeChunk, func(i int) (err error) {
		if found.Load() == int64(count) {
			return nil
		}
		p := &Probe{Task: t, FD: fds[i]}
		err = pr.probe(p, quick)
		if len(fds) != count && errors.Is(err, unix.EBADF) {
			return nil // a free number
		}
		probes[i] = p
		found.Add(1)
		return err
	})
	if err != nil {
		return nil, err
	}
	probes = slices.DeleteFunc(probes, func(p *Probe) bool { return p == nil })
	if quick {
		err = pr.addLocks(probes)
	}
	return probes, err
}

// mayBeQuick says whether n more descriptors may be looked at without fdinfo: there are many, and locks are listed.
func (pr *Prober) mayBeQuick(n int) bool {
	if pr.met.Add(int64(n)) < manyDescriptors {
		return false
	}
	pr.list.Do(func() {
		go func() {
			pr.locked, pr.lockedErr = filelock.Locked()
			close(pr.listed)
		}()
	})
	if n >= manyDescriptors {
		return true // the list will be there before all are looked at
	}
	select {
	case <-pr.listed:
		return pr.lockedErr == nil
	default:
		return false
	}
}

// addLocks reads fdinfo of those files that have locks, if it has not been read.
func (pr *Prober) addLocks(probes []*Probe) error {
	<-pr.listed
	return spread.Range(len(probes), probeChunk, func(i int) (err error) {
		p := probes[i]
		if p.Info == &p.info && (pr.lockedErr != nil || pr.locked.Has(p.Stat.Dev, p.Stat.Ino)) {
			p.Info, err = p.Task.Proc.FDInfo(p.FD)
		}
		return err
	})
}

// numbers are those the task may have descriptors at, and how many it has. A list from /proc makes an entry for each:
// where a table is well filled it is cheaper to try all.
func numbers(t *Task) (fds []int, count int, err error) {
	st, err := t.Proc.Fstat("fd")
	if err != nil {
		return nil, 0, err
	}
	count = int(st.Size) // since Linux 6.2
	if count < t.Status.FDSize/8 || count == 0 {
		fds, err = t.Proc.FDs()
		return fds, len(fds), err
	}
	fds = make([]int, t.Status.FDSize)
	for i := range fds {
		fds[i] = i
	}
	return fds, count, nil
}

// probe asks what one descriptor is, quickly if locks need not be told; the error of a number that is free is EBADF.
func (pr *Prober) probe(p *Probe, quick bool) error {
	own, err := p.Task.getFD(p.FD)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	wrap := func(what string, err error) error {
		return fmt.Errorf("%s of task %d, fd %d: %w", what, p.Task.Pid, p.FD, err)
	}
	flags, err := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
	if err != nil {
		return wrap("flags", err)
	}
	p.Flags = uint32(flags) &^ unix.O_CLOEXEC // how it was opened; what holds is the descriptor's own
	err = unix.Fstat(own, &p.Stat)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) { // some files of /proc end with their process
		p.silent = true
		p.Info, err = p.Task.Proc.FDInfo(p.FD)
		return err
	}
	if err != nil {
		return wrap("fstat", err)
	}
	if err := p.askFS(own); err != nil {
		return err
	}
	if p.Owner, err = owner(own, p.Flags); err != nil {
		return wrap("owner", err)
	}
	if p.Info, err = p.readInfo(own, quick); err != nil {
		return err
	}
	if p.mode() == unix.S_IFREG { // it will be asked for, and here several are asked at a time
		if p.link, err = pr.link(own); err != nil {
			return wrap("path", err)
		}
		p.gotLink = true
	}
	for _, a := range pr.askers {
		if a.Match(p) {
			p.answer, p.answerErr = a.Ask(p, own)
		}
	}
	return nil
}

// link is the path the kernel prints for a file that the tool has.
func (pr *Prober) link(own int) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(pr.links, strconv.Itoa(own), buf[:])
	return string(buf[:max(n, 0)]), err
}

// plainFS are file systems whose files lseek may be asked for their position: it changes nothing, waits for nobody, and
// the kernel lists their locks by the numbers that stat tells.
var plainFS = map[int64]bool{unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true}

// tellsPosition says whether lseek tells the file's position and does nothing else.
func (p *Probe) tellsPosition() bool {
	return p.mode() == unix.S_IFREG && p.Flags&unix.O_PATH == 0 && plainFS[p.FSType]
}

// readInfo is what fdinfo says. Quickly means that it is not read where the file itself tells the same, but for locks.
func (p *Probe) readInfo(own int, quick bool) (*procfs.FDInfo, error) {
	info := &p.info
	info.Flags, info.MntID = p.Flags, -1
	switch {
	case !quick:
		return p.Task.Proc.FDInfo(p.FD)
	case p.FSType == unix.PIPEFS_MAGIC, p.FSType == unix.SOCKFS_MAGIC:
	case p.tellsPosition():
		var err error
		if info.Pos, err = unix.Seek(own, 0, unix.SEEK_CUR); err != nil {
			return nil, fmt.Errorf("position of task %d, fd %d: %w", p.Task.Pid, p.FD, err)
		}
	default:
		return p.Task.Proc.FDInfo(p.FD)
	}
	return info, nil
}

// filePosition is where the tool saw the position of a descriptor's file, which tells it from others with its key.
type filePosition struct {
	fd  int
	key objid.Key
	pos int64
}

// askDescriptors asks which descriptors are closed on exec. Positions that told files apart are asked once more: where one
// has moved, somebody outside of the tree has the file too, and it takes a closer look.
func askDescriptors(b *remote.Builder, t *Task) Answer[*Task] {
	guesses := t.guesses()
	flags := askEach(b, len(t.FDs), func(i int) int { return int(t.FDs[i].GetFd()) }, unix.SYS_FCNTL, remote.Imm(unix.F_GETFD))
	positions := askEach(b, len(guesses), func(i int) int { return guesses[i].fd }, unix.SYS_LSEEK, remote.Imm(0), remote.Imm(unix.SEEK_CUR))
	return func(r *remote.Results, t *Task) error {
		for i, v := range flags(r) {
			if v < 0 {
				return fmt.Errorf("F_GETFD of fd %d: %w", t.FDs[i].GetFd(), syscall.Errno(-v))
			}
			*t.FDs[i].Flags = uint32(v)
		}
		for i, v := range positions(r) {
			if guess := t.positions[i]; v != guess.pos {
				t.ids.Doubt(objid.File, guess.key)
			}
		}
		t.positions = nil
		return nil
	}
}

// guesses are the positions that have told files of the task from others.
func (t *Task) guesses() []filePosition {
	t.positions = slices.DeleteFunc(t.positions, func(p filePosition) bool { return !t.ids.Guessed(objid.File, p.key) })
	return t.positions
}

// sameness tells tasks apart that are asked different things: by their descriptors, and by POSIX timers.
func (t *Task) sameness() string {
	var b []byte
	add := func(n int) { b = binary.AppendVarint(b, int64(n)) }
	for _, e := range t.FDs {
		add(int(e.GetFd()))
	}
	add(-1)
	for _, p := range t.guesses() {
		add(p.fd)
	}
	add(-1)
	for _, p := range t.posixTimers {
		add(p.ID)
	}
	return string(b)
}

// askedAtOnce is how many descriptors are asked about in one piece of program memory.
const askedAtOnce = 1000

// askEach makes a system call for each of n descriptors, and returns what tells the results in their order.
func askEach(b *remote.Builder, n int, fd func(int) int, nr int, args ...remote.Arg) func(*remote.Results) iter.Seq2[int, int64] {
	var parts []remote.Ref
	for i := 0; i < n; i += askedAtOnce {
		var words []byte
		for j := range min(askedAtOnce, n-i) {
			words = binary.NativeEndian.AppendUint64(words, uint64(fd(i+j)))
		}
		part := b.InOut(words)
		b.CallEach(nr, part, len(words)/8, args...)
		parts = append(parts, part)
	}
	return func(r *remote.Results) iter.Seq2[int, int64] {
		return func(yield func(int, int64) bool) {
			for i := range n {
				word := r.Bytes(parts[i/askedAtOnce])[i%askedAtOnce*8:]
				if !yield(i, int64(binary.NativeEndian.Uint64(word))) {
					return
				}
			}
		}
	}
}
