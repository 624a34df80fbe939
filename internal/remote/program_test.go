package remote

import (
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cryo/arch"
)

var update = flag.Bool("update", false, "rewrite golden files")

// exampleProgram has an operation of every kind.
func exampleProgram() *Program {
	b := NewBuilder("example")
	path, buf := b.String("/etc/hostname"), b.Zero(256)
	blob := b.Bytes([]byte{1, 2, 3})
	io := b.InOut([]byte("abc"))
	end := b.NewLabel()
	fd := b.Call(unix.SYS_OPENAT, Imm(unix.AT_FDCWD), path, Imm(unix.O_RDONLY), Imm(0)).Must()
	n := b.Call(unix.SYS_READ, fd, buf.At(16), Imm(240))
	b.JumpIf(n, Less, Imm(0), end)
	b.Call(unix.SYS_CLOSE, fd).Allow(unix.EBADF)
	b.Call(unix.SYS_MMAP, Imm(0x7f0000000000), Imm(4096), Imm(3), Imm(0x32), Imm(-1), Imm(0)).Expect(0x7f0000000000)
	b.Call(unix.SYS_DUP3, Mem(buf), Deref(0x7f0000000010), Imm(0)).Discard()
	sum := b.Add(n, Imm(1))
	b.Sub(sum, Imm(2))
	b.Store(buf, sum)
	b.Store32(buf.At(8), blob)
	b.Load(0x1000)
	b.Load32(buf)
	b.Copy(io, blob, Imm(3))
	b.FutexWake(buf, Imm(1))
	b.FutexWait(buf, Imm(1))
	b.SkipZero(Imm(0x7f0000000000), Imm(4096))
	b.CRC32C(Imm(0x7f0000000000), Imm(1024), io)
	b.Trap()
	child := b.NewLabel()
	args := b.InOut((&arch.CloneArgs{Flags: unix.CLONE_FILES}).Bytes())
	b.Clone(args, 88, child)
	b.Jump(end)
	b.Label(child)
	b.Goto(Imm(0x10000), Imm(0x20000))
	b.Sigreturn(buf)
	b.Label(end)
	return b.Program()
}

func TestProgramText(t *testing.T) {
	const golden = "testdata/example.txt"
	got := exampleProgram().String()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("program text (-want +got):\n%s", d)
	}
}

// TestSplit cuts programs into all sizes of buffers and checks that nothing gets lost.
func TestSplit(t *testing.T) {
	p := exampleProgram()
	for limit := 0; limit <= p.Size()+64; limit += 8 {
		chunks, err := p.split(limit)
		if err != nil {
			var big *tooBig
			if !errors.As(err, &big) || big.need <= limit {
				t.Fatalf("limit %d: %v", limit, err)
			}
			continue
		}
		checkChunks(t, p, chunks, limit)
	}
}

func checkChunks(t *testing.T, p *Program, chunks []*chunk, limit int) {
	t.Helper()
	next := 0
	for _, c := range chunks {
		if c.first != next || c.end <= c.first {
			t.Fatalf("limit %d: chunk [%d, %d) after %d", limit, c.first, c.end, next)
		}
		next = c.end
		if c.size > limit {
			t.Fatalf("limit %d: a chunk has %d bytes", limit, c.size)
		}
		res := newResults(p)
		for i := range res.values[:c.first] {
			res.values[i] = int64(i)
		}
		b := c.assemble(p, res)
		for i := c.first; i < c.end; i++ {
			for n, a := range p.ops[i].args {
				v := le.Uint64(b[c.opOffset(i)+arch.OpArg+8*n:])
				switch a.mode {
				case modeLabel:
					if to := p.labels[a.index]; to < c.first || to >= c.end || int(v) != c.opOffset(to) {
						t.Fatalf("limit %d: op %d jumps to %d, outside of [%d, %d)", limit, i, to, c.first, c.end)
					}
				case modeRef, modeMem:
					if v < uint64(arch.HdrSize+(c.end-c.first)*arch.OpSize) || v > uint64(c.size) {
						t.Fatalf("limit %d: op %d points to %d", limit, i, v)
					}
				case modeResult:
					if int(a.index) < c.first && int32(v) != a.index {
						t.Fatalf("limit %d: op %d gets %d for result %d", limit, i, v, a.index)
					}
				}
			}
		}
	}
	if next != len(p.ops) {
		t.Fatalf("limit %d: the chunks end at op %d of %d", limit, next, len(p.ops))
	}
}

// TestLargeProgram runs a program that does not fit: results and memory go over from part to part.
func TestLargeProgram(t *testing.T) {
	spawned(t, SpawnOptions{SlotSize: 4096}, func(s *Session) error {
		const n, at = 10000, 0x7000_0000_0000
		b := NewBuilder("many mappings")
		counter := b.Zero(8)
		last := b.Add(Imm(0), Imm(0))
		for i := range n {
			prot := unix.PROT_READ | i%2*unix.PROT_WRITE // neighbours do not merge
			b.Call(unix.SYS_MMAP, Imm(at+uint64(i)*4096), Imm(4096), Imm(prot),
				Imm(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE), Imm(-1), Imm(0)).Expect(at + uint64(i)*4096)
			if i%100 == 0 {
				last = b.Add(last, Imm(1))
				b.Store(counter, last)
			}
		}
		p := b.Program()
		start := time.Now()
		res, err := s.Run(p)
		if err != nil {
			return err
		}
		t.Logf("%d ops in %v", p.Len(), time.Since(start))
		if v, err := res.Value(last); err != nil || v != n/100 {
			t.Errorf("%d results were added up, not %d, %v", v, n/100, err)
		}
		if v := res.Uint64(counter); v != n/100 {
			t.Errorf("memory says %d", v)
		}
		return nil
	})
}

// TestCallErrors checks that a failure tells program, thread, operation, call, arguments and error.
func TestCallErrors(t *testing.T) {
	spawned(t, SpawnOptions{}, func(s *Session) error {
		tid := itoa(s.Leader().Thread().TID)
		b := NewBuilder("fail")
		fd := b.Call(unix.SYS_DUP, Imm(1)).Must()
		b.Call(unix.SYS_FTRUNCATE, fd, Imm(-1)).Must()
		_, err := s.Run(b.Program())
		wantError(t, err, `program "fail" in thread `+tid+", op 1: ftruncate(", "-1) = EINVAL (invalid argument)")
		if !errors.Is(err, unix.EINVAL) {
			t.Error("the error number is not in the error")
		}

		b = NewBuilder("expect")
		b.Call(unix.SYS_GETPPID).Expect(99)
		_, err = s.Run(b.Program())
		wantError(t, err, "getppid() = ", ", expected 99")

		b = NewBuilder("look")
		bad := b.Call(unix.SYS_CLOSE, Imm(-1))
		end := b.NewLabel()
		b.Jump(end)
		skipped := b.Call(unix.SYS_GETPID)
		b.Label(end)
		res, err := s.Run(b.Program())
		if err != nil {
			return err
		}
		_, err = res.Value(bad)
		wantError(t, err, "close(-1) = EBADF")
		_, err = res.Value(skipped)
		wantError(t, err, "getpid(), did not run")

		b = NewBuilder("crash")
		b.Store(Imm(8), Imm(1))
		_, err = s.Run(b.Program())
		wantError(t, err, "op 0: *(u64 *)8 = 1", "segmentation fault")
		return nil
	})
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("error %v lacks %q", err, p)
		}
	}
}

func TestTrap(t *testing.T) {
	spawned(t, SpawnOptions{}, func(s *Session) error {
		b := NewBuilder("two steps")
		first := b.Call(unix.SYS_GETPID)
		b.Trap()
		second := b.Call(unix.SYS_GETPPID)
		sl := s.Leader()
		res, err := sl.Run(b.Program())
		if err != nil {
			return err
		}
		if _, ok := res.Raw(first); !ok {
			t.Error("the first step did not run")
		}
		if _, ok := res.Raw(second); ok {
			t.Error("the second step ran before the trap")
		}
		if res, err = sl.Continue(); err != nil {
			return err
		}
		if v, err := res.Value(second); err != nil || int(v) != os.Getpid() {
			t.Errorf("parent %d, %v", v, err)
		}
		_, err = sl.Continue()
		wantError(t, err, "has ended")
		return nil
	})
}

// FuzzAssemble builds programs out of bytes and checks that every split of them is sound.
func FuzzAssemble(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07"), uint16(300))
	f.Add([]byte("zzzzzzzzzzzzzzzzabcabcabcabcabcabcabc"), uint16(700))
	f.Fuzz(func(t *testing.T, script []byte, limit uint16) {
		if len(script) > 400 {
			return
		}
		b := NewBuilder("fuzz")
		refs := []Ref{b.Zero(8)}
		var labels []Label
		placed := 0
		for i, c := range script {
			arg := func(n int) Arg {
				switch n % 4 {
				case 0:
					return refs[n%len(refs)]
				case 1:
					return Mem(refs[n%len(refs)])
				case 2:
					if b.Len() > 0 {
						return Op{b, n % b.Len()}
					}
				}
				return Imm(n)
			}
			switch c % 7 {
			case 0:
				refs = append(refs, b.Zero(int(c)))
			case 1:
				refs = append(refs, b.Bytes(script[:i]))
			case 2, 3:
				b.Call(int(c), arg(i), arg(int(c)), arg(i+1))
			case 4:
				labels = append(labels, b.NewLabel())
				b.JumpIf(arg(i), Eq, arg(i+3), labels[len(labels)-1])
			case 5:
				if placed < len(labels) {
					b.Label(labels[placed])
					placed++
				}
			case 6:
				b.Store(refs[int(c)%len(refs)], arg(i))
			}
		}
		for ; placed < len(labels); placed++ {
			b.Label(labels[placed])
		}
		p := b.Program()
		if chunks, err := p.split(int(limit)); err == nil {
			checkChunks(t, p, chunks, int(limit))
		}
		_ = p.String()
	})
}
