package dirty

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"cryo/internal/pagemap"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const page = pagemap.PageSize

// own makes a tracker of this process by write protection.
func own(t testing.TB) (*Tracker, *pagemap.Map) {
	t.Helper()
	if !pagemap.HasScan() || !hasWriteProtect() {
		t.Skip("this kernel has no asynchronous write protection (Linux 6.7)")
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, UffdFlags, 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	tr, err := NewWriteProtect(os.Getpid(), int(fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	pm, err := pagemap.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pm.Close() })
	return tr, pm
}

// mapped is memory of n pages; from a file if f is not nil.
func mapped(t testing.TB, n int, f *os.File) ([]byte, Span) {
	t.Helper()
	fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANON
	if f != nil {
		fd, flags = int(f.Fd()), unix.MAP_PRIVATE
	}
	b, err := unix.Mmap(fd, 0, n*page, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	start := uint64(uintptr(unsafe.Pointer(&b[0])))
	return b, Span{start, start + uint64(len(b)), f != nil}
}

// clean lists the pages of s, by number, that are own and have not been written.
func clean(t testing.TB, tr *Tracker, pm *pagemap.Map, s Span, ofFile bool) []int {
	t.Helper()
	pages := []int{}
	q := pagemap.Own
	q.Return |= tr.Categories()
	err := pm.Scan(s.Start, s.End, q, func(r pagemap.Region) error {
		for at := r.Start; at < r.End; at += page {
			if tr.Clean(r.Categories, ofFile) {
				pages = append(pages, int(at-s.Start)/page)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func arm(t testing.TB, tr *Tracker, pm *pagemap.Map, s Span) {
	t.Helper()
	taken, err := tr.Take(pm, []Span{s}, true)
	if err == nil && len(taken.Theirs) == 0 {
		err = tr.Arm(pm, []Span{s}, taken.Fresh)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func touch(b []byte, pages ...int) {
	for _, p := range pages {
		b[p*page]++
	}
}

func TestWrittenPages(t *testing.T) {
	tr, pm := own(t)
	b, s := mapped(t, 8, nil)
	touch(b, 0, 1, 2, 3, 5)
	if got := clean(t, tr, pm, s, false); len(got) != 0 {
		t.Errorf("clean before it was armed: %v", got)
	}
	arm(t, tr, pm, s)
	if d := cmp.Diff([]int{0, 1, 2, 3, 5}, clean(t, tr, pm, s, false)); d != "" {
		t.Error("just armed:", d)
	}
	if err := unix.Madvise(b[2*page:3*page], unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	touch(b, 0, 2, 4)
	if d := cmp.Diff([]int{1, 3, 5}, clean(t, tr, pm, s, false)); d != "" {
		t.Error("a page written, one dropped and written, one new:", d)
	}
	arm(t, tr, pm, s)
	if d := cmp.Diff([]int{0, 1, 2, 3, 4, 5}, clean(t, tr, pm, s, false)); d != "" {
		t.Error("armed again:", d)
	}
	tr.Close()
	if got := clean(t, tr, pm, s, false); len(got) != 0 {
		t.Errorf("clean when nobody tracks: %v", got)
	}
}

// TestMoved: a mapping that mremap has moved, or that was made in the place of one that is tracked, is not clean.
func TestMoved(t *testing.T) {
	tr, pm := own(t)
	b, s := mapped(t, 4, nil)
	touch(b, 0, 1, 2, 3)
	arm(t, tr, pm, s)
	_, to := mapped(t, 4, nil)
	_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(s.Start), 4*page, 4*page, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, uintptr(to.Start), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if got := clean(t, tr, pm, to, false); len(got) != 0 {
		t.Errorf("clean where they were moved to: %v", got)
	}
	_, _, errno = unix.Syscall6(unix.SYS_MMAP, uintptr(s.Start), 4*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED|unix.MAP_POPULATE, ^uintptr(0), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if got := clean(t, tr, pm, s, false); len(got) != 0 {
		t.Errorf("clean where they were: %v", got)
	}
}

// TestFileShowsThrough: where a private page of a file mapping was dropped the kernel leaves a mark that looks like a
// page in swap.
func TestFileShowsThrough(t *testing.T) {
	tr, pm := own(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 * page); err != nil {
		t.Fatal(err)
	}
	b, s := mapped(t, 4, f)
	touch(b, 0, 1)
	arm(t, tr, pm, s)
	if d := cmp.Diff([]int{0, 1}, clean(t, tr, pm, s, true)); d != "" {
		t.Error("just armed:", d)
	}
	if err := unix.Madvise(b[:page], unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int{1}, clean(t, tr, pm, s, true)); d != "" {
		t.Error("one dropped:", d)
	}
	if b[0] != 0 {
		t.Error("the file does not show through")
	}
}

// TestSomebodyElses: a mapping has one userfaultfd, and only its owner counts on it.
func TestSomebodyElses(t *testing.T) {
	tr, pm := own(t)
	theirs, _ := own(t)
	b, s := mapped(t, 4, nil)
	touch(b, 0, 1)
	arm(t, theirs, pm, s)
	if got := clean(t, tr, pm, s, false); len(got) != 2 {
		t.Fatalf("clean, as it seems: %v", got)
	}
	for who, want := range map[*Tracker]Taken{tr: {Theirs: []Span{s}}, theirs: {}} {
		if got, err := who.Take(pm, []Span{s}, false); err != nil {
			t.Fatal(err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Error("whose a mapping is:", d)
		}
	}
	touch(b, 0)
	arm(t, tr, pm, s)
	if d := cmp.Diff([]int{1}, clean(t, theirs, pm, s, false)); d != "" {
		t.Error("arming changed what somebody else tracks:", d)
	}
}

func TestRuns(t *testing.T) {
	type run struct {
		s     Span
		flags uint64
	}
	want := []run{{Span{End: page}, 3}, {Span{Start: 2 * page, End: 900 * page}, 0}, {Span{Start: 900 * page, End: 901 * page}, 1},
		{Span{Start: 1 << 46, End: 1<<46 + 1<<40}, 2}}
	var r Runs
	for _, w := range want {
		r.Add(w.s.Start, w.s.End, w.flags)
	}
	var got []run
	for s, flags := range r.All() {
		got = append(got, run{s, flags})
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(run{})); d != "" {
		t.Error(d)
	}
	if len(r.buf) > 32 {
		t.Errorf("four runs take %d bytes", len(r.buf))
	}
}

// BenchmarkTrack looks at 1 GiB: nothing written, and one page in a hundred.
func BenchmarkTrack(b *testing.B) {
	tr, pm := own(b)
	const pages = 1 << 18
	mem, s := mapped(b, pages, nil)
	for p := range pages {
		mem[p*page] = 1
	}
	arm(b, tr, pm, s)
	for name, step := range map[string]int{"clean": pages, "1%": 100, "all": 1} {
		b.Run(name+"/scan", func(b *testing.B) {
			for p := 0; p < pages; p += step {
				mem[p*page]++
			}
			for b.Loop() {
				n := 0
				q := pagemap.OwnAnonymous
				q.Return |= tr.Categories()
				pm.Scan(s.Start, s.End, q, func(pagemap.Region) error { n++; return nil })
			}
		})
		b.Run(name+"/arm", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				for p := 0; p < pages; p += step {
					mem[p*page]++
				}
				b.StartTimer()
				arm(b, tr, pm, s)
			}
		})
	}
}
