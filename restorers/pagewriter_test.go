package restorers

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
	"testing"

	"cryo/internal/image"
	"cryo/internal/pagecopy"

	"cryo/internal/uffd"

	"golang.org/x/sys/unix"
)

// The test binary is its own target: with this variable set it maps fresh memory at a fixed address, registers nothing,
// and waits. Its userfaultfd is descriptor 3 on demand.
const fillTargetEnv = "RESTORERS_FILL_TARGET"

const (
	fillBase  = 0x20_0000_0000
	fillPages = 4000
)

func TestMain(m *testing.M) {
	if os.Getenv(fillTargetEnv) != "" {
		beFillTarget()
		return
	}
	os.Exit(m.Run())
}

func beFillTarget() {
	if err := mapFresh(fillBase, fillPages*image.PageSize); err != nil {
		panic(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffd.UserModeOnly, 0, 0)
	if errno != 0 {
		fmt.Println(-1)
	} else {
		fmt.Println(fd)
	}
	io.Copy(io.Discard, os.Stdin)
}

// startFillTarget returns the target's pid and the number of its userfaultfd, -1 if it may have none.
func startFillTarget(t *testing.T) (pid, uffd int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fillTargetEnv+"=1")
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
	fmt.Sscan(line, &uffd)
	return cmd.Process.Pid, uffd
}

// fillSet writes a set with one page map: every page but each fifth of fillPages, numbered in its first word.
func fillSet(t *testing.T) image.Source {
	t.Helper()
	dir := t.TempDir()
	set := testSet{dir}
	var runs []image.Run
	pages, err := os.Create(filepath.Join(dir, image.PagesFile(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	w := bufio.NewWriter(pages)
	page := make([]byte, image.PageSize)
	for i := range uint64(fillPages) {
		if i%5 == 4 {
			continue
		}
		binary.NativeEndian.PutUint64(page, i+1)
		w.Write(page)
		if n := len(runs); n > 0 && runs[n-1].End() == fillBase+i*image.PageSize {
			runs[n-1].Pages++
			continue
		}
		runs = append(runs, image.Run{Addr: fillBase + i*image.PageSize, Pages: 1, Flags: image.PEPresent})
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	set.pagemap(t, 7, 1, runs)
	src, err := image.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func TestPageFill(t *testing.T) {
	src := fillSet(t)
	whole := Range{fillBase, fillBase + fillPages*image.PageSize}
	half := Range{fillBase, fillBase + fillPages/2*image.PageSize}
	rest := Range{half.End, whole.End}
	for _, c := range []struct {
		name   string
		parts  []Part
		copied []Range
	}{
		{"written", []Part{{Range: whole}}, nil},
		{"copied", []Part{{Range: whole}}, []Range{whole}},
		{"both", []Part{{Range: half}, {Range: rest}}, []Range{half}},
		{"forced", []Part{{Range: half, Forced: true}, {Range: rest}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			pid, uffd := startFillTarget(t)
			f := &PageFill{Source: src, Kind: image.TaskPages, ID: 7, PID: pid, Parts: c.parts}
			if c.copied != nil {
				if uffd < 0 {
					t.Skip("no userfaultfd on this machine")
				}
				u, err := OpenUffd(pid, uffd, c.copied)
				if err != nil {
					t.Fatal(err)
				}
				f.UseUffd(u)
				if !f.Parts[0].Copied {
					t.Error("the kernel does not take the range")
				}
				defer u.Close()
			}
			if err := f.Run(context.Background()); err != nil {
				t.Fatal(err)
			}
			if err := f.Uffd.Close(); err != nil {
				t.Fatal(err)
			}
			checkFilled(t, pid)
		})
	}
}

// passingSource has its pages in memory, as a stream has.
type passingSource struct {
	image.Source
	mem *os.File
}

func (s passingSource) OpenPages(id uint32) (*image.Pages, error) {
	from, err := s.Source.OpenPages(id)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if _, err := io.Copy(s.mem, from); err != nil {
		return nil, err
	}
	fd, err := unix.Dup(int(s.mem.Fd()))
	return &image.Pages{File: os.NewFile(uintptr(fd), "pages"), Size: from.Size, Passing: true}, err
}

// What has been written is given back, by whoever reads it last.
func TestPageFillReleases(t *testing.T) {
	whole := Range{fillBase, fillBase + fillPages*image.PageSize}
	for _, last := range []bool{false, true} {
		fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		src := passingSource{fillSet(t), os.NewFile(uintptr(fd), "pages")}
		defer src.mem.Close()
		pid, _ := startFillTarget(t)
		f := &PageFill{Source: src, Kind: image.TaskPages, ID: 7, PID: pid, Parts: []Part{{Range: whole}}, Last: last}
		if err := f.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		checkFilled(t, pid)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Blocks == 0 != last {
			t.Errorf("last reader: %v: the pages take %d blocks, %v", last, st.Blocks, err)
		}
	}
}

func checkFilled(t *testing.T, pid int) {
	t.Helper()
	task := pagecopy.NewTask(pid)
	defer task.Close()
	page := make([]byte, image.PageSize)
	want := make([]byte, image.PageSize)
	for i := range uint64(fillPages) {
		r := pagecopy.Range{Addr: fillBase + i*image.PageSize, Len: image.PageSize}
		if err := task.ReadPages([]pagecopy.Range{r}, page); err != nil {
			t.Fatal(err)
		}
		binary.NativeEndian.PutUint64(want, i+1)
		if i%5 == 4 {
			clear(want)
		}
		if !bytes.Equal(page, want) {
			t.Fatalf("page %d begins with %x", i, page[:8])
		}
	}
}

func TestPageFillRefuses(t *testing.T) {
	src := fillSet(t)
	pid, _ := startFillTarget(t)
	for name, parts := range map[string][]Part{
		"pages outside": {{Range: Range{fillBase, fillBase + image.PageSize}}},
		"no memory":     {{Range: Range{fillBase, fillBase + fillPages*image.PageSize}, Shift: 1 << 40}},
	} {
		f := &PageFill{Source: src, Kind: image.TaskPages, ID: 7, PID: pid, Parts: parts}
		if err := f.Run(context.Background()); err == nil {
			t.Error(name, "went unnoticed")
		}
	}
}
