package remote

import (
	"bytes"
	"hash/crc32"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/remote/inprocess"
)

// here runs programs in this process, without a tracer: what is tested is the interpreter, on an emulated processor too
// (GOARCH=arm64 go test -exec qemu-aarch64 -run Interpreter).
type here struct {
	code, buf []byte
	regs      arch.Regs
}

func newHere(t *testing.T) *here {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	signal.Ignore(syscall.SIGWINCH)
	t.Cleanup(func() { signal.Reset(syscall.SIGWINCH) })
	m, err := unix.Mmap(-1, 0, 8*arch.BlobPage, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	copy(m, arch.Code())
	h := &here{code: m[:arch.BlobPage], buf: m[arch.BlobPage:]}
	h.regs = returnRegs(uint64(inprocess.ComeBack()))
	return h
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// run runs a program to its end or failure and returns what it left.
func (h *here) run(t *testing.T, p *Program) (res *Results, state, op uint64) {
	t.Helper()
	c := p.whole()
	framed := h.buf[4*arch.BlobPage:]
	copy(h.buf, p.wholeImage())
	le.PutUint64(h.buf[arch.HdrState:], arch.StateRunning)
	le.PutUint64(h.buf[arch.HdrSignal:], uint64(syscall.SIGWINCH))
	le.PutUint64(h.buf[arch.HdrFrame:], uint64(addr(framed)))
	var mask uint64
	if _, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 0, 0, uintptr(unsafe.Pointer(&mask)), 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	frame, err := arch.SigFrame(nil, &h.regs, plainXState(), mask, uint64(addr(framed)))
	if err != nil {
		t.Fatal(err)
	}
	copy(framed, frame)
	inprocess.Enter(addr(h.code), addr(h.buf), addr(h.buf)+arch.HdrSize)
	res = newResults(p)
	res.collect(c, bytes.Clone(h.buf[:c.readBack]))
	at := le.Uint64(h.buf[arch.HdrOp:]) - uint64(addr(h.buf)) - arch.HdrSize
	return res, le.Uint64(h.buf[arch.HdrState:]), at / arch.OpSize
}

func TestInterpreter(t *testing.T) {
	h := newHere(t)
	pid := int64(os.Getpid())

	b := NewBuilder("everything")
	path, buf := b.String("/proc/self/stat"), b.Zero(64)
	fd := b.Call(unix.SYS_OPENAT, Imm(unix.AT_FDCWD), path, Imm(unix.O_RDONLY), Imm(0)).Must()
	n := b.Call(unix.SYS_READ, fd, buf, Imm(16)).Expect(16)
	closed := b.Call(unix.SYS_CLOSE, fd).Must()
	bad := b.Call(unix.SYS_CLOSE, Imm(-1)).Allow(unix.EBADF)
	b.Call(unix.SYS_CLOSE, Imm(-1)).Discard()
	getpid := b.Call(unix.SYS_GETPID)
	sum, diff := b.Add(getpid, Imm(5)), b.Sub(getpid, Imm(7))
	word := b.Zero(16)
	b.Store(word, getpid)
	b.Store32(word.At(8), Imm(0x1_8000_0001))
	loaded, loaded32 := b.Add(Mem(word), Imm(1)), b.Load32(word.At(8))
	copied := b.Zero(27)
	b.Copy(copied, b.Bytes([]byte("the quick brown fox jumps.")), Imm(26))
	zeroes := b.Zero(4096)
	allZero := b.SkipZero(zeroes, Imm(4096))
	b.Store(zeroes.At(808), Imm(9))
	notZero := b.SkipZero(zeroes, Imm(4096))
	lanes := b.Bytes(crcPieces())
	registers := b.InOut(crcRegisters(func(lane int) uint32 { return uint32(lane) * 0x01020304 }))
	if arch.HasCRC() {
		b.CRC32C(lanes, Imm(crcPiece), registers)
	}
	futex := b.Zero(16)
	b.FutexWake(futex, Imm(3))
	b.FutexWait(futex, Imm(3))
	p := b.Program()
	res, state, at := h.run(t, p)
	if state != arch.StateStopped {
		t.Fatalf("state %d at %s: %d", state, p.opText(int(at)), int64(le.Uint64(h.buf[arch.HdrResult:])))
	}
	for _, tc := range []struct {
		name string
		op   Op
		want int64
	}{
		{"read", n, 16}, {"close", closed, 0}, {"close(-1)", bad, -int64(unix.EBADF)}, {"getpid", getpid, pid},
		{"add", sum, pid + 5}, {"sub", diff, pid - 7}, {"memory", loaded, pid + 1}, {"32 bits", loaded32, 0x80000001},
		{"zeroes", allZero, 4096}, {"word", notZero, 808},
	} {
		if got, ok := res.Raw(tc.op); !ok || got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	if !bytes.HasPrefix(res.Bytes(buf), []byte(itoa(int(pid)))) {
		t.Errorf("read %q", res.Bytes(buf))
	}
	if string(res.Bytes(copied)) != "the quick brown fox jumps.\x00" {
		t.Errorf("copied %q", res.Bytes(copied))
	}
	if res.Uint32(futex) != 3 {
		t.Errorf("futex word is %d", res.Uint32(futex))
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	want := crcRegisters(func(lane int) uint32 {
		return ^crc32.Update(^(uint32(lane) * 0x01020304), table, crcPieces()[lane*crcPiece:][:crcPiece])
	})
	if arch.HasCRC() && !bytes.Equal(res.Bytes(registers), want) {
		t.Errorf("checksums are %x, want %x", res.Bytes(registers), want)
	}
}

const crcPiece = 48

// crcPieces are the pieces that checksums are made of.
func crcPieces() []byte {
	b := make([]byte, CRCLanes*crcPiece)
	for i := range b {
		b[i] = byte(i * i)
	}
	return b
}

// crcRegisters are the registers of all lanes as they lie in memory.
func crcRegisters(of func(lane int) uint32) (b []byte) {
	for lane := range CRCLanes {
		b = le.AppendUint64(b, uint64(of(lane)))
	}
	return b
}

func TestInterpreterJumps(t *testing.T) {
	h := newHere(t)
	for _, tc := range []struct {
		x    int64
		cond Cond
		y    int64
		want bool
	}{
		{1, Eq, 1, true}, {1, Eq, 2, false}, {1, Ne, 2, true}, {1, Ne, 1, false},
		{1, Below, 2, true}, {2, Below, 2, false}, {-1, Below, 2, false}, {2, Below, -1, true},
		{-1, Less, 2, true}, {2, Less, 2, false}, {2, Less, -1, false}, {-3, Less, -2, true},
	} {
		b := NewBuilder("jump")
		out := b.Zero(8)
		over := b.NewLabel()
		b.JumpIf(Imm(tc.x), tc.cond, Imm(tc.y), over)
		b.Store(out, Imm(1))
		b.Label(over)
		res, state, _ := h.run(t, b.Program())
		if jumped := res.Uint64(out) == 0; state != arch.StateStopped || jumped != tc.want {
			t.Errorf("%d %v %d: %v, state %d", tc.x, tc.cond, tc.y, jumped, state)
		}
	}
}

func TestInterpreterCallEach(t *testing.T) {
	h := newHere(t)
	b := NewBuilder("each")
	var words []byte
	for _, fd := range []int64{0, -1, 1 << 20} {
		words = le.AppendUint64(words, uint64(fd))
	}
	each := b.InOut(words)
	b.CallEach(unix.SYS_FCNTL, each, len(words)/8, Imm(unix.F_GETFD))
	after := b.Call(unix.SYS_GETPID)
	res, state, _ := h.run(t, b.Program())
	if state != arch.StateStopped {
		t.Fatalf("state %d", state)
	}
	own, err := unix.FcntlInt(0, unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{int64(own), -int64(unix.EBADF), -int64(unix.EBADF)} {
		if got := int64(res.Uint64(each.At(8 * i))); got != want {
			t.Errorf("word %d is %d, not %d", i, got, want)
		}
	}
	if got, _ := res.Raw(after); got != int64(os.Getpid()) {
		t.Errorf("the call after it returned %d", got)
	}
}

func TestInterpreterFailures(t *testing.T) {
	h := newHere(t)
	for _, tc := range []struct {
		name  string
		build func(*Builder)
		state uint64
		op    uint64
	}{
		{"must", func(b *Builder) { b.Call(unix.SYS_CLOSE, Imm(-1)).Must() }, arch.StateFailed, 1},
		{"another errno", func(b *Builder) { b.Call(unix.SYS_CLOSE, Imm(-1)).Allow(unix.EPERM) }, arch.StateFailed, 1},
		{"expect", func(b *Builder) { b.Call(unix.SYS_GETPID).Expect(0) }, arch.StateFailed, 1},
		{"large values are no errors", func(b *Builder) {
			b.Call(unix.SYS_BRK, Imm(0)).Must()
		}, arch.StateStopped, 2},
		{"unknown kind", func(b *Builder) { b.add(200) }, arch.StateBad, 1},
	} {
		b := NewBuilder(tc.name)
		b.Call(unix.SYS_GETPID)
		tc.build(b)
		if _, state, op := h.run(t, b.Program()); state != tc.state || op != tc.op {
			t.Errorf("%s: state %d at op %d", tc.name, state, op)
		}
	}
}

// TestInterpreterGoto leaves through another copy of the interpreter and comes back without a signal.
func TestInterpreterGoto(t *testing.T) {
	h := newHere(t)
	inner := NewBuilder("inner")
	inner.Call(unix.SYS_GETPID)
	inner.Goto(Imm(inprocess.ComeBack()), Imm(0))
	second := h.buf[arch.BlobPage/2:]
	copy(second, inner.Program().wholeImage())
	outer := NewBuilder("outer")
	outer.Goto(Imm(arch.BlobHere()), Imm(addr(second)))
	copy(h.buf, outer.Program().wholeImage())
	inprocess.Enter(addr(h.code), addr(h.buf), addr(h.buf)+arch.HdrSize)
	if got := le.Uint64(second[arch.HdrSize+arch.OpResult:]); int(got) != os.Getpid() {
		t.Errorf("the inner program says %d", got)
	}
}

// TestInterpreterEmulated runs the tests of the interpreter for the other architecture.
func TestInterpreterEmulated(t *testing.T) {
	if testing.Short() || runtime.GOARCH != "amd64" {
		t.Skip("cross-compiles")
	}
	qemu, err := exec.LookPath("qemu-aarch64")
	if err != nil {
		t.Skip("no emulator of arm64: apt-get install qemu-user")
	}
	bin := filepath.Join(t.TempDir(), "test")
	build := exec.Command("go", "test", "-c", "-o", bin, ".")
	build.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(qemu, bin, "-test.run", "^TestInterpreter(|Jumps|Failures|Goto)$", "-test.v").CombinedOutput()
	if err != nil || bytes.Count(out, []byte("--- PASS")) != 4 {
		t.Errorf("%v: %s", err, out)
	}
}
