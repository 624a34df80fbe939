package vma

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mmap maps and unmaps memory around a test.
func mmap(t *testing.T, fd, size, prot, flags int) []byte {
	t.Helper()
	b, err := unix.Mmap(fd, 0, size, prot, flags)
	if err != nil {
		t.Skipf("mmap with flags %#x: %v", flags, err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// own finds the mapping of this process that begins at b.
func own(t *testing.T, b []byte) *Mapping {
	t.Helper()
	maps, err := List(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for i := range maps {
		if maps[i].Start <= address(b) && address(b) < maps[i].End {
			return &maps[i]
		}
	}
	t.Fatalf("no mapping at %x", address(b))
	return nil
}

func TestQueryAndTextAgree(t *testing.T) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	asked, err := query(int(f.Fd()))
	if err != nil {
		t.Skip("PROCMAP_QUERY:", err)
	}
	text, err := parseMaps(f)
	if err != nil {
		t.Fatal(err)
	}
	// The runtime maps memory as it likes; all mappings of files are still there.
	files := func(all []Mapping) (some []Mapping) {
		for _, m := range all {
			if m.Name != "" && m.Name[0] != '[' || m.Name == vsyscallName {
				some = append(some, m)
			}
		}
		return some
	}
	if diff := cmp.Diff(files(text), files(asked)); diff != "" {
		t.Error("text (-) and query (+):", diff)
	}
}

func TestParseMaps(t *testing.T) {
	const text = "55bc2aeae000-55bc2aeaf000 r-xp 00001000 fe:00 9978197 /tmp/a b (deleted)\n" +
		"7f52fe593000-7f52fe595000 rw-s 00000000 00:06 4 /dev/zero (deleted)\n" +
		"7f52fe597000-7f52fe599000 rw-p 00000000 00:00 0 \n" +
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"
	maps, err := parseMaps(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var back strings.Builder
	for i := range maps {
		back.WriteString(maps[i].String() + "\n")
	}
	if back.String() != text {
		t.Errorf("%s came back as %s", text, back.String())
	}
	maps, err = parseMaps(strings.NewReader("7f52fe597000-7f52fe599000 r--p 00000000 fe:00 7   /a\\012b\n"))
	if err != nil || maps[0].Name != "/a\nb" {
		t.Error(maps, err)
	}
}

func TestScanFlags(t *testing.T) {
	const smaps = "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me gd ac \n" +
		"7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0 [x]\nSize: 4 kB\nVmFlags: rd dc dd lo \n"
	for name, r := range map[string]*strings.Reader{"whole": strings.NewReader(smaps), "bytewise": strings.NewReader(smaps)} {
		got := map[uint64]Flags{}
		found := func(start uint64, fl Flags) bool { got[start] = fl; return true }
		err := scanFlags(r, found)
		if name == "bytewise" {
			r.Reset(smaps)
			err = scanFlags(iotest.OneByteReader(r), found)
		}
		if err != nil {
			t.Fatal(err)
		}
		want := map[uint64]Flags{0x1000: GrowsDown, 0x7ffc00000000: DontFork | DontDump | Locked}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(name, diff)
		}
	}
	if err := scanFlags(bytes.NewReader(bytes.Repeat([]byte("x"), 1<<20)), nil); err == nil {
		t.Error("a record of a megabyte was taken")
	}
}

func TestKindAndEntry(t *testing.T) {
	const anon = unix.MAP_ANON
	memfd, err := unix.MemfdCreate("some name", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(memfd)
	if err := unix.Ftruncate(memfd, 4096); err != nil {
		t.Fatal(err)
	}
	zero, err := unix.Open("/dev/zero", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(zero)
	for _, c := range []struct {
		name        string
		fd, flags   int
		size        int
		kind        Kind
		status      uint32
		flagsInFile uint32
	}{
		{"private", -1, anon | unix.MAP_PRIVATE | unix.MAP_NORESERVE, 4096, Anonymous, StatusRegular | StatusAnonPrivate, unix.MAP_PRIVATE | anon | unix.MAP_NORESERVE},
		{"stack", -1, anon | unix.MAP_PRIVATE | unix.MAP_GROWSDOWN, 4096, Anonymous, StatusRegular | StatusAnonPrivate, unix.MAP_PRIVATE | anon | unix.MAP_GROWSDOWN},
		{"shared", -1, anon | unix.MAP_SHARED, 4096, SharedAnonymous, StatusRegular | StatusAnonShared, unix.MAP_SHARED | anon},
		{"memfd", memfd, unix.MAP_SHARED, 4096, Memfd, StatusRegular | StatusMemfd | StatusFileShared, unix.MAP_SHARED},
		{"private memfd", memfd, unix.MAP_PRIVATE, 4096, Memfd, StatusRegular | StatusMemfd | StatusFilePrivate, unix.MAP_PRIVATE},
		{"zero device", zero, unix.MAP_PRIVATE, 4096, File, StatusRegular | StatusFilePrivate, unix.MAP_PRIVATE},
		{"huge", -1, anon | unix.MAP_PRIVATE | unix.MAP_HUGETLB, 2 << 20, Anonymous, StatusRegular | StatusAnonPrivate, unix.MAP_PRIVATE | anon | unix.MAP_HUGETLB | MapHuge(2<<20)},
		{"shared huge", -1, anon | unix.MAP_SHARED | unix.MAP_HUGETLB, 2 << 20, SharedAnonymous, StatusRegular | StatusAnonShared, unix.MAP_SHARED | anon | unix.MAP_HUGETLB | MapHuge(2<<20)},
	} {
		t.Run(c.name, func(t *testing.T) {
			// The pages around keep the kernel from merging the mapping with its neighbours.
			b := mmap(t, c.fd, c.size, unix.PROT_READ|unix.PROT_WRITE, c.flags)
			unix.Madvise(b, unix.MADV_DONTFORK)
			m := own(t, b)
			if m.Kind() != c.kind {
				t.Fatalf("%v is of kind %d, want %d", m, m.Kind(), c.kind)
			}
			all, err := ReadFlags(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			fl, err := all.Of([]Mapping{*m})
			if err != nil {
				t.Fatal(err)
			}
			e := m.Entry(fl[0])
			if e.GetStatus() != c.status || e.GetFlags() != c.flagsInFile {
				t.Errorf("%v: status %#x flags %#x, want %#x and %#x", m, e.GetStatus(), e.GetFlags(), c.status, c.flagsInFile)
			}
			if diff := cmp.Diff([]int{unix.MADV_DONTFORK}, Advices(e)); diff != "" {
				t.Error(diff)
			}
			if c.kind == SharedAnonymous && e.GetShmid() != m.Inode {
				t.Errorf("shmid %d, want the inode %d", e.GetShmid(), m.Inode)
			}
		})
	}
}

func TestFlagsOfNoMapping(t *testing.T) {
	all, err := ReadFlags(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, start := range []uint64{4096, 1 << 63} {
		if _, err := all.Of([]Mapping{{Start: start, End: start + 4096}}); err == nil {
			t.Errorf("%x has flags", start)
		}
	}
}

// TestCode compares the executable mappings with those of the whole list.
func TestCode(t *testing.T) {
	all, err := List(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	code, err := Code(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(all, func(m Mapping) bool { return m.Prot&unix.PROT_EXEC == 0 || m.Kind() == Vsyscall })
	if diff := cmp.Diff(want, code); diff != "" || len(code) == 0 {
		t.Error(diff)
	}
}

func TestEveryTaskHasTheKernelsMappings(t *testing.T) {
	maps, err := List(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[Kind]bool{}
	stack := false
	for i := range maps {
		seen[maps[i].Kind()] = true
		stack = stack || maps[i].Stack()
	}
	if !seen[VDSO] || !seen[VVAR] || !stack {
		t.Errorf("vdso %v, vvar %v, stack %v", seen[VDSO], seen[VVAR], stack)
	}
	if seen[Vsyscall] != (gateArea() != nil) {
		t.Error("vsyscall page listed:", seen[Vsyscall])
	}
}

func TestGoneTask(t *testing.T) {
	if _, err := List(1 << 30); !os.IsNotExist(unwrap(err)) {
		t.Error(err)
	}
}

func unwrap(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("55bc2aeae000-55bc2aeaf000 r-xp 00001000 fe:00 9978197 /tmp/a\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		maps, err := parseMaps(bytes.NewReader(text))
		for i := range maps {
			if err == nil && maps[i].Len() == 0 {
				t.Error("empty mapping", maps[i])
			}
			maps[i].Kind()
			maps[i].Entry(0)
		}
	})
}

// manyMappings maps n times two pages, of which one is written, with room between.
func manyMappings(b *testing.B, n int) {
	b.Helper()
	const stride = 4 * 4096
	room, err := unix.Mmap(-1, 0, n*stride, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Munmap(room) })
	for i := range n {
		part := room[i*stride : i*stride+2*4096]
		if err := unix.Mprotect(part, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			b.Skip("the system allows fewer mappings:", err)
		}
		part[0] = 1
	}
}

// BenchmarkList lists 10,000 mappings with their neighbours, 20,000 in all; BenchmarkReadFlags reads their flags.
func BenchmarkList(b *testing.B) {
	manyMappings(b, 10000)
	for b.Loop() {
		if _, err := List(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadFlags(b *testing.B) {
	manyMappings(b, 10000)
	for b.Loop() {
		if _, err := ReadFlags(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}
