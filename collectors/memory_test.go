package collectors

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/objid"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The test binary is its own target: with this variable set it maps memory of many kinds and waits.
const memoryTargetEnv = "COLLECTORS_MEMORY_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(memoryTargetEnv) != "" {
		beMemoryTarget()
		return
	}
	os.Exit(m.Run())
}

// memoryBase is where the target's mappings begin, a megabyte from one to the next.
const memoryBase = 0x10_0000_0000

// memorySamples are the target's mappings. Each is 8 pages of which pages 1, 2 and 5 are written, 2 with zeros.
var memorySamples = []struct {
	name   string
	flags  int
	file   string // "", "memfd" or "disk"
	prot   int
	advice int
	status uint32
	own    []int // pages in the task's page map
	shared []int // pages in the object's
}{
	{name: "anonymous", flags: unix.MAP_PRIVATE | unix.MAP_ANON, status: vma.StatusRegular | vma.StatusAnonPrivate, own: []int{1, 5}},
	{name: "unreadable", flags: unix.MAP_PRIVATE | unix.MAP_ANON, prot: unix.PROT_EXEC, status: vma.StatusRegular | vma.StatusAnonPrivate, own: []int{1, 5}},
	{name: "droppable", flags: vma.MapDroppable | unix.MAP_ANON, status: vma.StatusRegular | vma.StatusAnonPrivate},
	{name: "shared", flags: unix.MAP_SHARED | unix.MAP_ANON, status: vma.StatusRegular | vma.StatusAnonShared, shared: []int{1, 5}},
	{name: "memfd", flags: unix.MAP_SHARED, file: "memfd", status: vma.StatusRegular | vma.StatusMemfd | vma.StatusFileShared, shared: []int{1, 5}},
	{name: "file", flags: unix.MAP_PRIVATE, file: "disk", status: vma.StatusRegular | vma.StatusFilePrivate, own: []int{1, 2, 5}},
	{name: "shared file", flags: unix.MAP_SHARED, file: "disk", status: vma.StatusRegular | vma.StatusFileShared},
	{name: "guarded", flags: unix.MAP_PRIVATE | unix.MAP_ANON, advice: 102, status: vma.StatusRegular | vma.StatusAnonPrivate, own: []int{5}},
}

const sampleSize = 8 * image.PageSize

func sampleAddr(i int) uint64 { return memoryBase + uint64(i)<<20 }

func beMemoryTarget() {
	for i, s := range memorySamples {
		fd := -1
		switch s.file {
		case "memfd":
			fd, _ = unix.MemfdCreate("sample", 0)
		case "disk":
			f, err := os.Create(os.Getenv(memoryTargetEnv) + s.name)
			if err != nil {
				panic(err)
			}
			fd = int(f.Fd())
		}
		if fd >= 0 {
			if err := unix.Ftruncate(fd, sampleSize); err != nil {
				panic(err)
			}
		}
		mem, err := mapAt(sampleAddr(i), s.flags, fd)
		if err != nil {
			fmt.Printf("no %s: %v\n", s.name, err)
			continue
		}
		for _, p := range []int{1, 2, 5} {
			mem[p*image.PageSize] = byte(p)
		}
		mem[2*image.PageSize] = 0
		if s.prot != 0 {
			unix.Mprotect(mem, s.prot)
		}
		if s.advice != 0 {
			if err := unix.Madvise(mem[:3*image.PageSize], s.advice); err != nil {
				fmt.Printf("no %s: %v\n", s.name, err)
			}
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// startMemoryTarget starts the target and tells which of the samples this kernel has not.
func startMemoryTarget(t *testing.T) (*Task, string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), memoryTargetEnv+"="+t.TempDir()+"/")
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
	missing := ""
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		missing += lines.Text() + "\n"
	}
	proc, err := procfs.OpenTask(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	task := &Task{Pid: cmd.Process.Pid, State: Alive, Proc: proc}
	t.Cleanup(task.Close)
	if task.Status, err = proc.Status(); err != nil {
		t.Fatal(err)
	}
	return task, missing
}

// pageList keeps which pages were stored.
type pageList struct {
	runs  []image.Run
	bytes int
}

func (p *pageList) Add(addr, pages uint64, flags uint32) error {
	p.runs = append(p.runs, image.Run{Addr: addr, Pages: pages, Flags: flags})
	return nil
}
func (p *pageList) Direct() (*os.File, int64, bool) { return nil, 0, false }
func (p *pageList) Reserve(int64) int64             { panic("no file") }
func (p *pageList) Write(b []byte) (int, error)     { p.bytes += len(b); return len(b), nil }
func (p *pageList) Close() error                    { return nil }

// in lists the stored pages of [start, start+sampleSize), counted from start.
func (p *pageList) in(start uint64) (pages []int) {
	for _, r := range p.runs {
		for a := r.Addr; a < r.End(); a += image.PageSize {
			if a >= start && a < start+sampleSize {
				pages = append(pages, int(a-start)/image.PageSize)
			}
		}
	}
	return pages
}

func TestMemory(t *testing.T) {
	task, missing := startMemoryTarget(t)
	env := &Env{Options: options.Default(), Obstacles: &Obstacles{}, IDs: objid.NewAllocator(), Shared: NewSharedMemory()}
	env.Files = NewFiles(env, nil)
	m, err := ReadMemory(task)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return m.Register(env, task) },
		func() error { return m.Check(env, task) },
		env.Obstacles.Err,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	var stats MemoryStats
	own := &pageList{}
	if err := m.DumpPages(context.Background(), task, own, &stats, nil); err != nil {
		t.Fatal(err)
	}
	objects := map[uint64]*pageList{}
	err = env.Shared.Dump(context.Background(), func(kind image.PagemapKind, id uint64) (PageDest, error) {
		objects[id] = &pageList{}
		return objects[id], nil
	}, &stats)
	if err != nil {
		t.Fatal(err)
	}
	var e mm.MmEntry
	if err := m.FillMM(&e); err != nil {
		t.Fatal(err)
	}
	for i, s := range memorySamples {
		t.Run(s.name, func(t *testing.T) {
			if strings.Contains(missing, "no "+s.name+":") {
				t.Skip(missing)
			}
			v := entryAt(&e, sampleAddr(i))
			if v == nil || v.GetStatus() != s.status {
				t.Fatalf("entry %v, want status %#x", v, s.status)
			}
			if diff := cmp.Diff(s.own, own.in(sampleAddr(i))); diff != "" {
				t.Error("own pages, want (-) got (+):", diff)
			}
			var shared []int
			switch {
			case vma.Is(v, vma.StatusAnonShared):
				shared = objects[v.GetShmid()].in(0)
			case vma.Is(v, vma.StatusMemfd):
				shared = objects[uint64(env.Shared.inodes[0].GetShmid())].in(0)
			}
			if diff := cmp.Diff(s.shared, shared); diff != "" {
				t.Error("shared pages, want (-) got (+):", diff)
			}
		})
	}
	checkEntries(t, &e, !strings.Contains(missing, "no guarded:"))
	if got, want := own.bytes/image.PageSize, int(stats.Private.Written.Load()); got != want {
		t.Errorf("%d pages written, %d counted", got, want)
	}
}

func entryAt(e *mm.MmEntry, addr uint64) *vmapb.VmaEntry {
	for _, v := range e.Vmas {
		if v.GetStart() == addr {
			return v
		}
	}
	return nil
}

// checkEntries looks at what every task has: one vvar, one vdso, guards at the end.
func checkEntries(t *testing.T, e *mm.MmEntry, guarded bool) {
	t.Helper()
	var vvars, vdsos int
	last := uint64(0)
	for _, v := range e.Vmas {
		if vma.Is(v, vma.StatusGuard) {
			continue
		}
		if v.GetStart() < last {
			t.Errorf("entry %v is not in order", v)
		}
		last = v.GetEnd()
		if vma.Is(v, vma.StatusVVAR) {
			vvars++
		}
		if vma.Is(v, vma.StatusVDSO) {
			vdsos++
		}
	}
	if vvars != 1 || vdsos != 1 {
		t.Errorf("%d vvars, %d vdsos", vvars, vdsos)
	}
	end := e.Vmas[len(e.Vmas)-1]
	if guarded && (!vma.Is(end, vma.StatusGuard) || end.GetEnd()-end.GetStart() != 3*image.PageSize) {
		t.Errorf("the last entry is %v, want the guard region", end)
	}
}
