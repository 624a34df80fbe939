package pagecopy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// The test binary is its own target: with this variable set it fills so many bytes of memory as the pattern
// says and waits.
const targetEnv = "PAGECOPY_TARGET"

func TestMain(m *testing.M) {
	if spec := os.Getenv(targetEnv); spec != "" {
		beTarget(spec)
		return
	}
	os.Exit(m.Run())
}

// beTarget maps SIZE bytes and writes them: "dirty" numbers every word, "zero" writes zeros, "mixed" leaves
// page 1 of 4 untouched, writes zeros to page 2 and makes page 3 unreadable.
func beTarget(spec string) {
	var pattern string
	var size int
	fmt.Sscanf(spec, "%s %d", &pattern, &size)
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	for off := 0; off < size; off += pageSize {
		page := mem[off : off+pageSize]
		k := off / pageSize % 4
		switch {
		case pattern == "zero" || pattern == "mixed" && k == 2:
			clear(page)
		case pattern == "mixed" && k == 1:
		default:
			fill(page, uint64(off))
		}
		if pattern == "mixed" && k == 3 {
			if err := unix.Mprotect(page, unix.PROT_NONE); err != nil {
				panic(err)
			}
		}
	}
	fmt.Printf("%d\n", uintptr(unsafe.Pointer(&mem[0])))
	io.Copy(io.Discard, os.Stdin)
}

func fill(page []byte, seed uint64) {
	for i := 0; i < len(page); i += 8 {
		binary.NativeEndian.PutUint64(page[i:], seed+uint64(i)+1)
	}
}

func startTarget(t testing.TB, pattern string, size int) (pid int, addr uint64) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", targetEnv, pattern, size), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr, err = strconv.ParseUint(line[:len(line)-1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, addr
}

// memDest keeps runs, and bytes in a file or in memory.
type memDest struct {
	f    *os.File
	off  int64
	runs []image.Run
	buf  bytes.Buffer
}

func (d *memDest) Add(vaddr, pages uint64, flags uint32) error {
	if n := len(d.runs); n > 0 && d.runs[n-1].End() == vaddr && d.runs[n-1].Flags == flags {
		d.runs[n-1].Pages += pages
		return nil
	}
	d.runs = append(d.runs, image.Run{Addr: vaddr, Pages: pages, Flags: flags})
	return nil
}
func (d *memDest) Direct() (*os.File, int64, bool) { return d.f, d.off, d.f != nil }
func (d *memDest) Reserve(n int64) int64           { d.off += n; return d.off - n }
func (d *memDest) Write(b []byte) (int, error)     { return d.buf.Write(b) }

func (d *memDest) content(t *testing.T) []byte {
	if d.f == nil {
		return d.buf.Bytes()
	}
	b, err := os.ReadFile(d.f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tempFile(t testing.TB, dir string) *os.File {
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("pages-%d.img", os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); os.Remove(f.Name()) })
	return f
}

func TestCopyTask(t *testing.T) {
	const pages = 4 * 700 // more than a batch, in bytes and in ranges
	pid, addr := startTarget(t, "mixed", pages*pageSize)
	for _, direct := range []bool{true, false} {
		for _, keepZero := range []bool{true, false} {
			t.Run(fmt.Sprintf("direct=%v,keepZero=%v", direct, keepZero), func(t *testing.T) {
				dst := &memDest{}
				if direct {
					dst.f = tempFile(t, t.TempDir())
				}
				src := NewTask(pid)
				defer src.Close()
				var stats Stats
				c := New(context.Background(), src, dst, 2, &stats)
				for p := uint64(0); p < pages; p += 4 {
					at := addr + p*pageSize
					for _, r := range []Range{{Addr: at, Len: pageSize, KeepZero: keepZero}, {Addr: at + 2*pageSize, Len: 2 * pageSize, Flags: image.PELazy, KeepZero: keepZero}} {
						if err := c.Put(r); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				checkMixed(t, dst, addr, pages, keepZero)
				if n := stats.Written.Load()*pageSize - uint64(len(dst.content(t))); n != 0 {
					t.Errorf("counted %d bytes too many", n)
				}
			})
		}
	}
}

// checkMixed compares the runs and bytes with what the target wrote.
func checkMixed(t *testing.T, dst *memDest, addr uint64, pages int, keepZero bool) {
	t.Helper()
	content := dst.content(t)
	var want []byte
	page := make([]byte, pageSize)
	for p := 0; p < pages; p++ {
		switch {
		case p%4 == 1 || p%4 == 2 && !keepZero:
			continue
		case p%4 == 2:
			clear(page)
		default:
			fill(page, uint64(p*pageSize))
		}
		want = append(want, page...)
	}
	if !bytes.Equal(content, want) {
		t.Errorf("%d bytes of pages differ from the %d expected", len(content), len(want))
	}
	total := uint64(0)
	for i, r := range dst.runs {
		total += r.Bytes()
		if r.Flags&image.PEPresent == 0 || i > 0 && r.Addr < dst.runs[i-1].End() {
			t.Fatalf("run %d: %+v", i, r)
		}
	}
	if total != uint64(len(want)) {
		t.Errorf("runs announce %d bytes, want %d", total, len(want))
	}
}

func TestCopyFile(t *testing.T) {
	fd, err := unix.MemfdCreate("source", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "source")
	defer f.Close()
	f.WriteAt([]byte("tail"), 3*pageSize) // the last page is a part, the ones before are holes
	dst := &memDest{}
	c := New(context.Background(), File{f}, dst, 2, new(Stats))
	err = c.Put(Range{Addr: 0, Len: 4 * pageSize})
	if cerr := c.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	want := make([]byte, pageSize)
	copy(want, "tail")
	if !bytes.Equal(dst.buf.Bytes(), want) || len(dst.runs) != 1 || dst.runs[0].Addr != 3*pageSize {
		t.Errorf("runs %+v and %d bytes", dst.runs, dst.buf.Len())
	}
}

func TestCopyFails(t *testing.T) {
	pid, addr := startTarget(t, "dirty", 16*pageSize)
	src := NewTask(pid)
	defer src.Close()
	t.Run("unmapped", func(t *testing.T) {
		c := New(context.Background(), src, &memDest{}, 2, new(Stats))
		for i := uint64(0); i < 100; i++ {
			if c.Put(Range{Addr: 0x1000 + i<<20, Len: 1 << 20}) != nil {
				break
			}
		}
		if err := c.Close(); err == nil {
			t.Error("memory that is not there was read")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		c := New(ctx, src, &memDest{}, 2, new(Stats))
		c.Put(Range{Addr: addr, Len: 16 * pageSize})
		if err := c.Close(); err == nil {
			t.Error("a cancelled copy succeeded")
		}
	})
	t.Run("disk full", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer full.Close()
		c := New(context.Background(), src, &memDest{f: full}, 2, new(Stats))
		c.Put(Range{Addr: addr, Len: 16 * pageSize})
		if err := c.Close(); err == nil {
			t.Error("writing to a full device succeeded")
		}
	})
}

// BenchmarkCopyTask writes 1 GiB of a task to tmpfs and prints the ratio to write() of an own buffer.
func BenchmarkCopyTask(b *testing.B) {
	const size = 1 << 30
	for _, pattern := range []string{"dirty", "zero"} {
		pid, addr := startTarget(b, pattern, size)
		own := ownBuffer(b, pattern, size)
		for _, workers := range []int{1, 2, 3} {
			b.Run(fmt.Sprintf("%s/workers=%d", pattern, workers), func(b *testing.B) {
				var base, copied time.Duration
				for range b.N {
					f := tempFile(b, "/dev/shm")
					t0 := time.Now()
					for off := 0; off < size; off += 4 << 20 {
						f.WriteAt(own[off:off+4<<20], int64(off))
					}
					base += time.Since(t0)
					os.Remove(f.Name())
					f.Close()
					f = tempFile(b, "/dev/shm")
					t0 = time.Now()
					src := NewTask(pid)
					c := New(context.Background(), src, &memDest{f: f}, workers, new(Stats))
					c.Put(Range{Addr: addr, Len: size})
					if err := c.Close(); err != nil {
						b.Fatal(err)
					}
					src.Close()
					copied += time.Since(t0)
					os.Remove(f.Name())
					f.Close()
				}
				b.ReportMetric(copied.Seconds()/float64(b.N)*1e3, "ms/GiB")
				b.ReportMetric(base.Seconds()/float64(b.N)*1e3, "write-ms/GiB")
				b.ReportMetric(base.Seconds()/copied.Seconds(), "of-write")
			})
		}
	}
}

func ownBuffer(b *testing.B, pattern string, size int) []byte {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(mem) })
	unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	for off := 0; off < size; off += pageSize {
		if pattern == "zero" {
			clear(mem[off : off+pageSize])
		} else {
			fill(mem[off:off+pageSize], uint64(off))
		}
	}
	return mem
}
