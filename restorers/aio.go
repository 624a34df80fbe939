package restorers

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
)

// The kernel's struct aio_ring, and the struct iocb that io_submit takes.
const (
	aioHeader  = 32
	aioEvent   = 32
	aioMagic   = 0xa10a10a1
	aioHeadOff = 8
	iocbSize   = 64
)

// maxRing bounds a ring in bytes: /proc/sys/fs/aio-max-nr is 65,536 requests if it is not raised, and these are four times as many.
const maxRing = 16 << 20

// aioBatch is how many requests are made at a time.
const aioBatch = 128

// EmitAIO makes the AIO contexts of a task anew (io_setup(2), Linux 2.5; rings can be moved since 3.19). The contents of
// the rings are where they belong, in memory without a context; pid is the task to read them from.
//
// A context's place in its ring is known to the kernel alone, so it is moved there by requests that do nothing: as many as
// lead to the oldest event that was not yet taken, and are taken; then as many as there are such events. The events
// themselves are copied, and the ring moved to where it was.
func EmitAIO(b *remote.Builder, rings []*mm.AioRingEntry, pid int) error {
	if len(rings) == 0 {
		return nil
	}
	cpus, err := possibleCPUs()
	if err != nil {
		return err
	}
	fd := b.Call(unix.SYS_MEMFD_CREATE, b.String("aio"), remote.Imm(unix.MFD_CLOEXEC)).Must()
	for _, r := range rings {
		if err := emitRing(b, r, pid, cpus, fd); err != nil {
			return fmt.Errorf("AIO context %x: %w", r.GetId(), err)
		}
	}
	b.Call(unix.SYS_CLOSE, fd).Must().Discard()
	return nil
}

func emitRing(b *remote.Builder, r *mm.AioRingEntry, pid, cpus int, fd remote.Arg) error {
	size := uint64(r.GetRingLen())
	if size > maxRing {
		return fmt.Errorf("its ring has %d bytes, more than any kernel makes", size)
	}
	if made := ringLen(uint64(r.GetNrReq()), uint64(cpus)); made != size {
		return fmt.Errorf("its ring has %d bytes, this kernel with %d processors makes one of %d", size, cpus, made)
	}
	head, tail, err := readRing(pid, r.GetId(), size)
	if err != nil {
		return err
	}
	nr := uint32((size - aioHeader) / aioEvent)
	ctxp := b.Zero(8)
	b.Call(unix.SYS_IO_SETUP, remote.Imm(r.GetNrReq()), ctxp).Must().Discard()
	ctx := b.Add(remote.Mem(ctxp), remote.Imm(0))
	submit := emitSubmit(b, ctx, fd)
	events := b.Zero(aioBatch * aioEvent)
	for n := head; n > 0; {
		k := min(n, aioBatch)
		submit(k)
		b.Call(unix.SYS_IO_GETEVENTS, ctx, remote.Imm(k), remote.Imm(k), events, remote.Imm(0)).Expect(uint64(k))
		n -= k
	}
	for n := (tail + nr - head) % nr; n > 0; {
		k := min(n, aioBatch)
		submit(k)
		n -= k
	}
	b.Copy(b.Add(ctx, remote.Imm(aioHeader)), remote.Imm(r.GetId()+aioHeader), remote.Imm(size-aioHeader))
	b.Call(unix.SYS_MREMAP, ctx, remote.Imm(size), remote.Imm(size), remote.Imm(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED),
		remote.Imm(r.GetId())).Expect(r.GetId())
	return nil
}

// emitSubmit returns a function that adds k requests to write one byte to a file of no consequence; they are done when
// io_submit returns.
func emitSubmit(b *remote.Builder, ctx, fd remote.Arg) func(k uint32) {
	const opcodeOff, bufOff, bytesOff, fdOff = 16, 24, 32, 20
	iocb := make([]byte, iocbSize)
	binary.NativeEndian.PutUint16(iocb[opcodeOff:], 1) // IOCB_CMD_PWRITE
	binary.NativeEndian.PutUint64(iocb[bytesOff:], 1)
	request := b.InOut(iocb)
	b.Store(request.At(bufOff), request)
	b.Store32(request.At(fdOff), fd)
	pointers := b.Zero(aioBatch * 8)
	for i := range aioBatch {
		b.Store(pointers.At(8*i), request)
	}
	return func(k uint32) {
		b.Call(unix.SYS_IO_SUBMIT, ctx, remote.Imm(k), pointers).Expect(uint64(k))
	}
}

// readRing reads from a ring where the oldest event is and where the next one will be.
func readRing(pid int, addr, size uint64) (head, tail uint32, err error) {
	if size < aioHeader+aioEvent || size%image.PageSize != 0 {
		return 0, 0, fmt.Errorf("its ring has %d bytes", size)
	}
	var h [aioHeader]byte
	local := []unix.Iovec{{Base: &h[0], Len: aioHeader}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: aioHeader}}, 0)
	if err != nil || n != aioHeader {
		return 0, 0, fmt.Errorf("its ring cannot be read at %x: %w", addr, err)
	}
	word := func(off int) uint32 { return binary.NativeEndian.Uint32(h[off:]) }
	nr := uint32((size - aioHeader) / aioEvent)
	head, tail = word(aioHeadOff), word(aioHeadOff+4)
	if word(16) != aioMagic || word(4) != nr || head >= nr || tail >= nr {
		return 0, 0, fmt.Errorf("its ring of %d events has magic %#x, head %d and tail %d", word(4), word(16), head, tail)
	}
	return head, tail, nil
}

// ringLen is how long a ring the kernel makes of io_setup(nr): it rounds up to four requests a processor, doubles, adds
// two, and fills whole pages.
func ringLen(nr, cpus uint64) uint64 {
	events := 2*max(nr, 4*cpus) + 2
	return (aioHeader + events*aioEvent + image.PageSize - 1) / image.PageSize * image.PageSize
}

// possibleCPUs is how many processors the kernel is ready for.
func possibleCPUs() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		z, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil {
			return 0, fmt.Errorf("list of processors %q", text)
		}
		n += z - a + 1
	}
	return n, nil
}
