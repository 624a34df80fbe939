package pagecopy

import (
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// Task is the memory of a task. Whoever reads it has to be allowed to trace the task.
type Task struct {
	pid int
	// Shared says that pages may be other tasks' too, to be copied when one writes. process_vm_readv would give this task copies
	// of its own already: what it reads it pins, and since Linux 5.19 a pinned page is nobody else's. So all is read by
	// /proc/PID/mem, which takes a third more time of pages that are the task's own, and half as much of shared ones.
	Shared bool

	mu  sync.Mutex
	mem *os.File // /proc/PID/mem, opened on first use
}

// NewTask returns the memory of task pid.
func NewTask(pid int) *Task { return &Task{pid: pid} }

// PID is the task's.
func (t *Task) PID() int { return t.pid }

// Close gives back what was opened.
func (t *Task) Close() error {
	if t.mem == nil {
		return nil
	}
	return t.mem.Close()
}

// iovs are vectors not in use.
var iovs = sync.Pool{New: func() any { return new([maxRanges]remoteIov) }}

// remoteIov is struct iovec with an address of another task.
type remoteIov struct{ base, len uint64 }

// ReadPages reads what the task itself may read by process_vm_readv, unless it is shared, the rest by /proc/PID/mem.
func (t *Task) ReadPages(ranges []Range, buf []byte) error {
	iov := iovs.Get().(*[maxRanges]remoteIov)
	defer iovs.Put(iov)
	for len(ranges) > 0 {
		n, bytes := 0, 0
		for n < len(ranges) && !ranges[n].Force && !t.Shared {
			iov[n] = remoteIov{ranges[n].Addr, ranges[n].Len}
			bytes += int(ranges[n].Len)
			n++
		}
		if n == 0 {
			n, bytes = 1, int(ranges[0].Len)
			if err := t.readForced(ranges[0].Addr, buf[:bytes]); err != nil {
				return err
			}
		} else if err := t.readv(iov[:n], buf[:bytes]); err != nil {
			return err
		}
		ranges, buf = ranges[n:], buf[bytes:]
	}
	return nil
}

// readv reads all of iov into buf. A call that ends early has met a page it may not read (its mapping was
// taken for readable, or the page became a hole): that one goes the other way.
func (t *Task) readv(iov []remoteIov, buf []byte) error {
	for len(buf) > 0 {
		n, err := processVMReadv(t.pid, iov, buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EPERM || err == unix.ESRCH {
			return fmt.Errorf("memory of task %d: process_vm_readv: %w", t.pid, err)
		}
		if err != nil || n == 0 {
			n = pageSize - int(iov[0].base%pageSize)
			if err := t.readForced(iov[0].base, buf[:n]); err != nil {
				return err
			}
		}
		buf = buf[n:]
		iov = skip(iov, uint64(n))
	}
	return nil
}

// Running is the memory of a task that runs: mappings may be gone or others when they are read.
type Running struct {
	*Task
	Ended func() bool // says that the task is no more, and that its pid may be somebody else's
}

// ReadLeft reads what is there. Pages are tried one by one where a call has met one that it could not read.
func (t Running) ReadLeft(ranges []Range, buf []byte) ([]Range, error) {
	left := ranges
	if err := t.ReadPages(ranges, buf); err != nil && !t.Ended() {
		left = t.readEach(ranges, buf)
	}
	if t.Ended() { // what was read may not have been its own
		return nil, nil
	}
	return left, nil
}

// readEach reads page by page.
func (t Running) readEach(ranges []Range, buf []byte) (left []Range) {
	for _, r := range ranges {
		for ; r.Len > 0; r.Addr, r.Len = r.Addr+pageSize, r.Len-pageSize {
			page := r
			page.Len = pageSize
			if t.ReadPages([]Range{page}, buf[:pageSize]) != nil {
				continue
			}
			buf = buf[pageSize:]
			if n := len(left); n > 0 && left[n-1].Addr+left[n-1].Len == page.Addr && left[n-1].like(page) {
				left[n-1].Len += pageSize
				continue
			}
			left = append(left, page)
		}
	}
	return left
}

// like says whether two ranges differ only in their place.
func (r Range) like(o Range) bool {
	r.Addr, r.Len = o.Addr, o.Len
	return r == o
}

// skip cuts the first n bytes off iov.
func skip(iov []remoteIov, n uint64) []remoteIov {
	for n > 0 {
		if n < iov[0].len {
			iov[0].base, iov[0].len = iov[0].base+n, iov[0].len-n
			break
		}
		n -= iov[0].len
		iov = iov[1:]
	}
	return iov
}

// Sampling of Dense: of so many words of a window so many may be zero. Data has zeros too.
const (
	samples     = 16
	zeroSamples = samples / 4
	sampleEvery = selfWindow / samples
)

// Dense looks at the first word of a page every 64 KiB. Pages of zeros come in runs; one that is missed is stored, which
// costs its room and nothing else.
func (t *Task) Dense(addr, n uint64) bool {
	var words [selfWindow / sampleEvery]uint64
	count := int(min(n/sampleEvery, samples))
	if !t.sample(addr, words[:count]) {
		return false
	}
	zero := 0
	for _, w := range words[:count] {
		if w == 0 {
			zero++
		}
	}
	return zero <= zeroSamples
}

// sample reads a word every sampleEvery bytes, and says whether it could.
func (t *Task) sample(addr uint64, words []uint64) bool {
	buf := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
	if t.Shared {
		for i := range words {
			if t.readForced(addr+uint64(i)*sampleEvery, buf[8*i:][:8]) != nil {
				return false
			}
		}
		return true
	}
	iov := iovs.Get().(*[maxRanges]remoteIov)
	defer iovs.Put(iov)
	for i := range words {
		iov[i] = remoteIov{addr + uint64(i)*sampleEvery, 8}
	}
	got, err := processVMReadv(t.pid, iov[:len(words)], buf)
	return err == nil && got == len(buf)
}

func (t *Task) readForced(addr uint64, buf []byte) error {
	mem, err := t.openMem()
	if err == nil {
		_, err = mem.ReadAt(buf, int64(addr))
	}
	if err != nil {
		return fmt.Errorf("memory of task %d at %x: %w", t.pid, addr, err)
	}
	return nil
}

func (t *Task) openMem() (_ *os.File, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mem == nil {
		t.mem, err = procfs.OpenFile(t.pid, "mem")
	}
	return t.mem, err
}

func processVMReadv(pid int, iov []remoteIov, buf []byte) (int, error) {
	local := unix.Iovec{Base: &buf[0]}
	local.SetLen(len(buf))
	n, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// File is a file of shared memory: addresses are offsets.
type File struct{ *os.File }

// ReadPages reads the ranges. What is past the end of the file is zero: its last page may be a part.
func (f File) ReadPages(ranges []Range, buf []byte) error {
	for _, r := range ranges {
		part := buf[:r.Len]
		buf = buf[r.Len:]
		n, err := f.ReadAt(part, int64(r.Addr))
		if err != nil && err != io.EOF {
			return err
		}
		clear(part[n:])
	}
	return nil
}
