package sinks_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"golang.org/x/sys/unix"
)

const golden = "../testdata/images/golden"

func openSet(t testing.TB, dir string) *image.Dir {
	t.Helper()
	src, err := image.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func newDir(t testing.TB, path string, opt sinks.DirOptions) *sinks.Dir {
	t.Helper()
	d, err := sinks.NewDir(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// object is one page map of the golden set.
type object struct {
	kind image.PagemapKind
	id   uint64
}

// goldenObjects lists the page maps in the order of their pages files, which is the order criu wrote them in.
func goldenObjects(t testing.TB, src image.Source) []object {
	t.Helper()
	byPages := map[uint32]object{}
	tree, err := image.ReadAll(src, image.Pstree, 0)
	if err != nil {
		t.Fatal(err)
	}
	objects := []object{}
	for _, task := range tree {
		objects = append(objects, object{image.TaskPages, uint64(task.GetPid())})
	}
	memfds, err := image.ReadOptional(src, image.MemfdInode, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range memfds {
		objects = append(objects, object{image.ShmemPages, uint64(m.GetShmid())})
	}
	for _, o := range objects {
		p, err := image.ReadPagemap(src, o.kind, o.id)
		if err != nil {
			t.Fatal(err)
		}
		byPages[p.PagesID] = o
		p.Close()
	}
	objects = objects[:0]
	for id := uint32(1); int(id) <= len(byPages); id++ {
		objects = append(objects, byPages[id])
	}
	return objects
}

// copyPages sends all pages of a set to a sink, by Direct where that is possible.
func copyPages(t testing.TB, src *image.Dir, to sinks.Sink) {
	t.Helper()
	for _, o := range goldenObjects(t, src) {
		in, err := image.ReadPagemap(src, o.kind, o.id)
		if err != nil {
			t.Fatal(err)
		}
		pages, err := src.OpenPages(in.PagesID)
		if err != nil {
			t.Fatal(err)
		}
		out, err := to.Pagemap(o.kind, o.id)
		if err != nil {
			t.Fatal(err)
		}
		for run, err := range in.Runs() {
			if err == nil {
				err = out.Add(run.Addr, run.Pages, run.Flags)
			}
			if err == nil && run.Flags&image.PEPresent != 0 {
				err = copyRun(out, pages, int64(run.Bytes()))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(out.Close(), in.Close(), pages.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func copyRun(out sinks.Pagemap, from io.Reader, n int64) error {
	f, off, ok := out.Direct()
	if !ok {
		_, err := io.CopyN(out, from, n)
		return err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(from, b); err != nil {
		return err
	}
	_, err := f.WriteAt(b, off)
	out.Advance(n)
	return err
}

func copyMetadata(t testing.TB, from string, to sinks.Sink, skip func(string) bool) {
	t.Helper()
	all, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if skip(e.Name()) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		w, err := to.Create(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func isPages(name string) bool {
	return strings.HasPrefix(name, "page") || name == "inventory.img"
}

func readInventory(t testing.TB, src image.Source) *inventory.InventoryEntry {
	t.Helper()
	inv, err := image.ReadInventory(src)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// sameSet compares two directories byte for byte.
func sameSet(t testing.TB, got, want string, only func(string) bool) {
	t.Helper()
	all, err := os.ReadDir(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if !only(e.Name()) {
			continue
		}
		w, err := os.ReadFile(filepath.Join(want, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		g, err := os.ReadFile(filepath.Join(got, e.Name()))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(g, w) {
			t.Errorf("%s differs: %d bytes, want %d", e.Name(), len(g), len(w))
		}
	}
}

// What goes through the directory sink comes out as criu 4.2 wrote it, byte for byte.
func TestDirLikeCriu(t *testing.T) {
	src := openSet(t, golden)
	for _, sync := range []bool{false, true} {
		dir := t.TempDir()
		to := newDir(t, dir, sinks.DirOptions{Sync: sync})
		copyMetadata(t, golden, to, isPages)
		copyPages(t, src, to)
		if _, err := os.Stat(filepath.Join(dir, "inventory.img")); err == nil {
			t.Error("there is an inventory before Commit")
		}
		if err := to.Commit(readInventory(t, src)); err != nil {
			t.Fatal(err)
		}
		sameSet(t, dir, golden, func(string) bool { return true })
		names, _ := os.ReadDir(dir)
		want, _ := os.ReadDir(golden)
		if len(names) != len(want) {
			t.Errorf("%d files, want %d", len(names), len(want))
		}
		for _, n := range names {
			if fi, err := n.Info(); err != nil || fi.Mode() != 0o600 {
				t.Errorf("mode of %s is %v", n.Name(), fi.Mode())
			}
		}
		if err := to.Abort(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("Abort left %v", left)
		}
	}
}

// Whatever links lie in the directory, nothing outside is touched, and an old set is no longer valid once
// its first file is replaced.
func TestDirPlantedLinks(t *testing.T) {
	out := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(out, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	src := openSet(t, golden)
	files, _ := os.ReadDir(golden)
	for _, f := range append([]string{"inventory.img.tmp"}, names(files)...) {
		if err := os.Symlink(out, filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "inventory.img")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "inventory.img"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	to := newDir(t, dir, sinks.DirOptions{})
	copyMetadata(t, golden, to, isPages)
	if _, err := os.Lstat(filepath.Join(dir, "inventory.img")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old inventory is still there: %v", err)
	}
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(out); string(b) != "precious" {
		t.Errorf("the file outside now has %q", b)
	}
	sameSet(t, dir, golden, func(string) bool { return true })
}

func names(entries []os.DirEntry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestPagemapMistakes(t *testing.T) {
	dir := newDir(t, t.TempDir(), sinks.DirOptions{})
	defer dir.Abort()
	open := func() sinks.Pagemap {
		p, err := dir.Pagemap(image.TaskPages, 1)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open()
	if err := p.Add(0x2000, 2, image.PEPresent); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []image.Run{{Addr: 0x1000, Pages: 1}, {Addr: 0x3000, Pages: 1}, {Addr: 0x4001, Pages: 1}, {Addr: 1 << 63, Pages: 1 << 52}} {
		if err := p.Add(bad.Addr, bad.Pages, image.PEPresent); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := p.Close(); err == nil {
		t.Error("a page map without its bytes was closed without a word")
	}
	p = open()
	if err := p.Add(0x1000, 1, image.PEParent); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err == nil || !strings.Contains(err.Error(), "parent") {
		t.Errorf("pages in a parent that is not there: %v", err)
	}
}

// Runs that touch become one entry; workers fill reserved stretches in any order.
func TestMergeAndReserve(t *testing.T) {
	path := t.TempDir()
	dir := newDir(t, path, sinks.DirOptions{})
	p, err := dir.Pagemap(image.ShmemPages, 7)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(8) {
		if err := p.Add(i*2*image.PageSize, 2, image.PEPresent); err != nil {
			t.Fatal(err)
		}
	}
	f, _, ok := p.Direct()
	if !ok {
		t.Fatal("a directory has no file")
	}
	a, b := p.Reserve(8*image.PageSize), p.Reserve(8*image.PageSize)
	for _, off := range []int64{b, a} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(off >> 12)}, 8*image.PageSize), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := image.ReadPagemap(openSet(t, path), image.ShmemPages, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	run, err := r.Next()
	if err != nil || run.Pages != 16 {
		t.Errorf("first run %+v, %v", run, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the only run: %v", err)
	}
}

// A parent that is there: what it covers is taken, what it does not is refused.
func TestParentCoverage(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	first := newDir(t, filepath.Join(base, "1"), sinks.DirOptions{})
	p, err := first.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4*image.PageSize)
	err = errors.Join(p.Add(0x1000, 2, image.PEPresent), p.Add(0x3000, 1, image.PEPresent|image.PELazy), p.Add(0x8000, 1, image.PEPresent))
	_, werr := p.Write(page)
	if err := errors.Join(err, werr, p.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr, pages uint64
		ok          bool
	}{{0x1000, 3, true}, {0x2000, 1, true}, {0x8000, 1, true}, {0x3000, 2, false}, {0x5000, 1, false}, {0x8000, 2, false}} {
		second := newDir(t, filepath.Join(base, "2"), sinks.DirOptions{Parent: "../1"})
		p, err := second.Pagemap(image.TaskPages, 1)
		if err != nil {
			t.Fatal(err)
		}
		if has, err := p.HasParent(); !has || err != nil {
			t.Errorf("HasParent: %v, %v", has, err)
		}
		err = errors.Join(p.Add(c.addr, c.pages, image.PEParent), p.Close())
		if (err == nil) != c.ok {
			t.Errorf("%d pages at %#x in the parent: %v", c.pages, c.addr, err)
		}
		if err := second.Commit(&inventory.InventoryEntry{ImgVersion: new(uint32)}); err != nil {
			t.Fatal(err)
		}
		if target, err := os.Readlink(filepath.Join(base, "2", "parent")); target != "../1" {
			t.Errorf("link to the parent: %q, %v", target, err)
		}
	}
}

// A full disk is one error that says so, and Abort gives the space back.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	to := newDir(t, dir, sinks.DirOptions{})
	p, err := to.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 128<<10)
	err = p.Add(0, uint64(len(big)/image.PageSize), image.PEPresent)
	_, werr := p.Write(big)
	if !errors.Is(werr, unix.ENOSPC) || !strings.Contains(werr.Error(), "pages-1.img") {
		t.Errorf("write to a full disk: %v (%v)", werr, err)
	}
	p.Close()
	if err := to.Abort(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("Abort left %v", names(left))
	}
}
