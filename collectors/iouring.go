package collectors

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cryo/internal/image"
	"cryo/internal/iouring"
	"cryo/internal/procfs"
	"cryo/internal/remote"
	"cryo/internal/vma"

	ext_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// IOURing collects rings for requests (io_uring(7), Linux 5.1) that have nothing in flight. Images: an entry of type EXT in
// files.img, see [image.IOURing].
//
// The kernel tells positions and what is registered in fdinfo (all of it since Linux 5.12). How a ring was set up it does not
// tell: its size and what it answers to calls that are refused do, as far as it matters. What remains hidden, and why that
// is no harm:
//
//   - SUBMIT_ALL is always assumed: who did not ask for it has a bad request reported as before, only the good ones behind it
//     need no second call.
//   - COOP_TASKRUN, TASKRUN_FLAG and SINGLE_ISSUER without DEFER_TASKRUN promise the kernel something and let it do less;
//     without them completions come no later.
//   - The time after which the kernel's thread of SQPOLL goes to sleep, and its processor: the program is told when it
//     sleeps, by a flag in the ring.
//   - ATTACH_WQ shares that thread, and the workers of the kernel, between rings: each gets its own.
//   - Limits of those workers belong to threads, and begin anew.
type IOURing struct{}

const ringKind = "[io_uring]"

// Match takes anonymous inodes named io_uring.
func (IOURing) Match(p *Probe) bool { return p.anonymous(ringKind) }

// Collect makes an ext_file_entry with a ring in it.
func (IOURing) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	if f.rings == nil {
		f.rings = map[uint64]ringFile{}
	}
	_, twice := f.rings[p.Stat.Ino] // before Linux 5.12 all have one inode, and mappings cannot be told apart
	f.rings[p.Stat.Ino] = ringFile{p, 0}
	ring, err := p.ring()
	if err != nil {
		return nil, err
	}
	if !twice {
		f.rings[p.Stat.Ino] = ringFile{p, id}
	}
	e := &ext_file.ExtFileEntry{Id: proto.Uint32(id), Fown: p.Owner}
	image.SetIOURing(e, ring)
	return &fdinfo.FileEntry{Ext: e}, nil
}

// ring finds out all that an image has of a ring.
func (p *Probe) ring() (*image.IOURing, error) {
	n, err := p.ringNumbers()
	if err != nil {
		return nil, err
	}
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := errors.Join(p.ringRegistered(n), p.ringAnswers(fd, n)); err != nil {
		return nil, err
	}
	ring, err := p.ringShape(fd, n)
	if err != nil {
		return nil, err
	}
	ring.Buffers = n.places
	return ring, p.ringInFlight(n, ring)
}

// ringInfo is what fdinfo says of a ring.
type ringInfo struct {
	sqMask, sqHead, sqTail, cachedSQHead uint32
	cqMask, cqHead, cqTail, cachedCQTail uint32
	thread                               int64 // of SQPOLL, -1: none
	files, buffers                       uint32
	places                               []image.RingBuffer // of buffers
	polls, overflow, personalities       int
	napi                                 string // "": the kernel has it not
}

// ringPatience is how long fdinfo may leave a ring out: it does while somebody else looks at it, or the kernel works on it.
const ringPatience = 5 * time.Second

// ringNumbers reads what fdinfo says, again if it had nothing to say.
func (p *Probe) ringNumbers() (*ringInfo, error) {
	n, err := ringNumbers(p.Info)
	for end := time.Now().Add(ringPatience); err != nil && time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		info, again := p.Task.Proc.FDInfo(p.FD)
		if again != nil {
			return nil, again
		}
		n, err = ringNumbers(info)
	}
	return n, err
}

func ringNumbers(info *procfs.FDInfo) (*ringInfo, error) {
	n := &ringInfo{thread: -1}
	for name, to := range map[string]*uint32{
		"SqMask": &n.sqMask, "SqHead": &n.sqHead, "SqTail": &n.sqTail, "CachedSqHead": &n.cachedSQHead,
		"CqMask": &n.cqMask, "CqHead": &n.cqHead, "CqTail": &n.cqTail, "CachedCqTail": &n.cachedCQTail,
		"UserFiles": &n.files, "UserBufs": &n.buffers,
	} {
		v, err := strconv.ParseUint(info.Field(name), 0, 32)
		if err != nil {
			return nil, fmt.Errorf("fdinfo of an io_uring: %s: %w", name, err)
		}
		*to = uint32(v)
	}
	if v, err := strconv.ParseInt(info.Field("SqThread"), 10, 64); err == nil {
		n.thread = v
	}
	n.napi = info.Field("NAPI")
	section := ""
	for line := range strings.Lines(string(info.Rest)) {
		name, _, _ := strings.Cut(line, ":")
		indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
		switch {
		case !indented:
			section = name
		case section == "UserBufs":
			var i int
			var b image.RingBuffer
			fmt.Sscanf(line, "%d: 0x%x/%d", &i, &b.Addr, &b.Len) // nothing of a free place
			if b.Addr == ^uint64(0) {                            // which older kernels put here
				b = image.RingBuffer{}
			}
			n.places = append(n.places, b)
		case section == "PollList":
			n.polls++
		case section == "CqOverflowList":
			n.overflow++
		case section == "Personalities" && strings.HasPrefix(line, " "):
			n.personalities++
		}
	}
	return n, nil
}

// ringRegistered refuses what is registered with a ring and cannot be told enough of.
func (p *Probe) ringRegistered(n *ringInfo) error {
	var what string
	switch {
	case n.files != 0:
		what = fmt.Sprintf("an io_uring with a table of %d registered files, of which the kernel does not say which they are", n.files)
	case int(n.buffers) != len(n.places) || slices.ContainsFunc(n.places, func(b image.RingBuffer) bool { return !p.Task.Memory.covers(b.Addr, b.Len) }):
		what = fmt.Sprintf("an io_uring with %d registered buffers, of which some are not in the task's memory", n.buffers)
	case n.personalities != 0:
		what = fmt.Sprintf("an io_uring with %d registered personalities", n.personalities)
	case n.napi != "" && n.napi != "disabled":
		what = "an io_uring that polls network devices (IORING_REGISTER_NAPI)"
	default:
		return nil
	}
	return p.Obstacle(what, "unregister them before the dump")
}

// covers says whether there is memory of the task at all of some addresses.
func (m *Memory) covers(addr, length uint64) bool {
	end := addr + length
	for i := range m.maps {
		if mp := &m.maps[i]; addr < end && mp.Start <= addr && addr < mp.End {
			addr = mp.End
		}
	}
	return addr >= end
}

// ringGroups is how many numbers are tried for provided buffers: programs count groups from 0, and each question is a call.
const ringGroups = 1024

// ringAnswers refuses what a ring betrays by its answers to calls that change nothing.
func (p *Probe) ringAnswers(fd int, n *ringInfo) error {
	refuse := func(what string) error { return p.Obstacle(what, "close it before the dump") }
	switch _, err := iouring.Enter(fd, 0, 0, iouring.EnterGetEvents); {
	case errors.Is(err, unix.EBADFD):
		return refuse("an io_uring that has not been enabled yet (IORING_SETUP_R_DISABLED)")
	case errors.Is(err, unix.EEXIST):
		return refuse("an io_uring whose completions come to one thread alone (IORING_SETUP_DEFER_TASKRUN), which cannot be dumped yet")
	case err != nil:
		return refuse(fmt.Sprintf("an io_uring that cannot be asked for completions: %v", err))
	}
	switch err := iouring.Ask(fd, iouring.RegisterRestrictions, 0); {
	case errors.Is(err, unix.EACCES):
		return refuse("an io_uring with restrictions (IORING_REGISTER_RESTRICTIONS), which the kernel does not tell")
	case errors.Is(err, unix.EEXIST):
		return refuse("an io_uring that takes requests from one thread alone (IORING_SETUP_SINGLE_ISSUER), which cannot be dumped yet")
	}
	if n.napi != "" && errors.Is(iouring.Ask(fd, iouring.RegisterNAPI, 1), unix.EINVAL) {
		return refuse("an io_uring that polls devices for what is done (IORING_SETUP_IOPOLL)")
	}
	if errors.Is(iouring.Ask(fd, iouring.RegisterEventfd, 1), unix.EBUSY) {
		return refuse("an io_uring with a registered eventfd, of which the kernel does not say which it is")
	}
	if !errors.Is(iouring.Ask(fd, iouring.RegisterPbufStatus, 1), unix.EFAULT) {
		return nil // the kernel cannot be asked for groups of buffers
	}
	for group := range uint32(ringGroups) {
		if iouring.HasBufferGroup(fd, group) {
			return refuse(fmt.Sprintf("an io_uring with provided buffers (group %d)", group))
		}
	}
	return nil
}

// ringShape finds out how a ring was set up, and copies its memory.
func (p *Probe) ringShape(fd int, n *ringInfo) (*image.IOURing, error) {
	for _, flags := range []uint32{0, iouring.NoSQArray, iouring.SQE128, iouring.CQE32, iouring.SQE128 | iouring.CQE32,
		iouring.SQE128 | iouring.NoSQArray, iouring.CQE32 | iouring.NoSQArray, iouring.SQE128 | iouring.CQE32 | iouring.NoSQArray} {
		shape := &iouring.Params{Flags: flags | iouring.CQSize | iouring.SubmitAll, CQEntries: n.cqMask + 1}
		like, err := iouring.Setup(n.sqMask+1, shape)
		if errors.Is(err, unix.EINVAL) {
			shape = &iouring.Params{Flags: flags | iouring.CQSize, CQEntries: n.cqMask + 1}
			like, err = iouring.Setup(n.sqMask+1, shape)
		}
		if errors.Is(err, unix.EINVAL) {
			continue // this kernel makes no such ring
		}
		if err != nil {
			return nil, err
		}
		unix.Close(like)
		if !iouring.Fits(fd, shape) {
			continue
		}
		ring, err := iouring.Map(fd, shape)
		if err != nil {
			return nil, err
		}
		defer ring.Unmap()
		return ringCopy(ring, n), nil
	}
	return nil, p.Obstacle("an io_uring whose memory is laid out otherwise than any that is known, or not the kernel's own (IORING_SETUP_NO_MMAP)",
		"close it before the dump")
}

// ringCopy takes over what is in the memory of a ring.
func ringCopy(r *iouring.Ring, n *ringInfo) *image.IOURing {
	e := &image.IOURing{Flags: r.Flags, SQEntries: r.SQEntries, CQEntries: r.CQEntries, SQHead: n.cachedSQHead, CQTail: n.cqTail,
		SQ: r.SQ, CQ: r.CQ, Rings: slices.Clone(r.Rings), SQEs: slices.Clone(r.SQEs)}
	if n.thread >= 0 {
		e.Flags |= iouring.SQPoll
	}
	if r.Flags&iouring.NoSQArray == 0 && !slices.ContainsFunc(e.Rings[r.SQ.Array:], func(b byte) bool { return b != 0 }) {
		// Nobody has written to the array, so there may be none that is used (IORING_SETUP_NO_SQARRAY). Who uses one
		// writes to it before each request.
		iouring.Identity(e.Rings[r.SQ.Array:])
	}
	return e
}

// ringInFlight refuses a ring with something in flight. Each request has one completion in the end, if the program did not
// ask for none or for many.
func (p *Probe) ringInFlight(n *ringInfo, r *image.IOURing) error {
	ended := n.cqTail + uint32(n.overflow) + r.Number(r.CQ.Overflow) + r.Number(r.SQ.Dropped)
	flying := int32(n.cachedSQHead - ended)
	var what string
	passing := false
	switch {
	case n.polls > 0:
		what = "an io_uring with " + count(max(n.polls, int(flying)), "request") + " in flight, waiting for a file to become ready"
	case r.Flags&iouring.SQPoll != 0 && n.sqTail != n.cachedSQHead:
		what, passing = "an io_uring with "+count(int(n.sqTail-n.cachedSQHead), "request")+" that the kernel's thread is about to take", true
	case n.sqHead != n.cachedSQHead || n.cqTail != n.cachedCQTail:
		what, passing = "an io_uring with requests in flight", true
	case flying > 0:
		what, passing = "an io_uring with "+count(int(flying), "request")+" in flight, or that asked for no completion (IOSQE_CQE_SKIP_SUCCESS)", true
	case flying < 0:
		what = "an io_uring with " + count(int(-flying), "completion") + " more than requests (multishot), so that it cannot be told whether one is in flight"
	case n.overflow > 0:
		what = "an io_uring with " + count(n.overflow, "completion") + " that it had no room for"
	default:
		return nil
	}
	o := p.Obstacle(what, "wait until they are done, or cancel them, before the dump")
	o.Passing = passing
	return o
}

// count is a number of things, in words.
func count(n int, thing string) string {
	if n == 1 {
		return "one " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// registeredRings is how many rings a thread can register (IO_RINGFD_REG_MAX).
const registeredRings = 16

// MetRings says whether there is any io_uring in the tree.
func (f *Files) MetRings() bool { return f.rings != nil }

// AskForRings refuses rings that some threads of a task have registered for themselves (IORING_REGISTER_RING_FDS, Linux 5.18),
// which only they are told of. It is called on the thread that traces them.
func (f *Files) AskForRings(t *Task, threads []*Thread) error {
	owner := t
	if t.SharesFiles != nil {
		owner = t.SharesFiles
	}
	if !slices.ContainsFunc(owner.FDs, func(e *fdinfo.FdinfoEntry) bool { return e.GetType() == fdinfo.FdTypes_EXT }) {
		return nil
	}
	b := remote.NewBuilder("registered rings")
	var asked [registeredRings]remote.Op // each ring for nothing
	for i := range asked {
		asked[i] = b.CallNumbers(unix.SYS_IO_URING_ENTER, uint64(i), 0, 0, iouring.EnterRegisteredRing, 0, 0)
	}
	program := b.Program()
	for _, th := range threads {
		res, err := t.Session.RunOn(th.Tracee, program)
		if err != nil {
			return err
		}
		for _, op := range asked {
			answer, _ := res.Raw(op)
			if errno := unix.Errno(-answer); answer < 0 && (errno == unix.EINVAL || errno == unix.EBADF || errno == unix.ENOSYS || errno == unix.EPERM) {
				continue
			}
			f.env.Obstacles.Add(Obstacle{Pid: t.Pid, Where: fmt.Sprintf("thread %d", th.Tid),
				What: "an io_uring that the thread has registered for itself (IORING_REGISTER_RING_FDS)", Remedy: "unregister it before the dump"})
			break
		}
	}
	return nil
}

// ringFile is where mappings of a ring find it.
type ringFile struct {
	probe *Probe
	id    uint32 // 0: it is refused, or there are several
}

// ring names the ring behind a mapping for the images.
func (f *Files) ring(t *Task, mp *vma.Mapping, inode uint64) (id uint32, err error) {
	r, known := f.rings[inode]
	what := "a part of the memory of an io_uring, which can be mapped only whole"
	switch {
	case !known:
		what = "memory of an io_uring that no descriptor of the tree leads to"
	case r.id == 0 && f.env.Obstacles.Err() != nil:
		return 0, nil // its descriptor stands in the way already
	case r.id == 0:
		what = "memory of one of several io_urings, which this kernel does not tell apart"
	default:
		whole, err := r.mappable(mp)
		if whole || err != nil {
			return r.id, err
		}
	}
	f.env.Obstacles.Add(Obstacle{Pid: t.Pid, Where: "mapping " + mp.Link(), What: what})
	return 0, nil
}

// mappable says whether a ring can be mapped like this.
func (r *ringFile) mappable(mp *vma.Mapping) (bool, error) {
	if !mp.Shared {
		return false, nil
	}
	switch mp.Offset {
	case iouring.OffRings, iouring.OffCQ, iouring.OffSQEs:
	default:
		return false, nil
	}
	fd, err := r.probe.Dup()
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	b, err := iouring.ReadPart(fd, int64(mp.Offset), int(mp.Len()))
	return err == nil && len(b) > 0, nil
}
