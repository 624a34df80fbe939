package sinks_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"

	"github.com/google/go-cmp/cmp"
)

// mixed is pages of all sorts: zeros, text, noise.
func mixed(pages int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, pages*image.PageSize)
	for p := range pages {
		page := b[p*image.PageSize:][:image.PageSize]
		switch p / 5 % 3 {
		case 1:
			copy(page, bytes.Repeat([]byte(fmt.Sprint("text ", p)), 800))
		case 2:
			for i := range page {
				page[i] = byte(r.Uint32())
			}
		}
	}
	return b
}

// written is what readAll reads back: runs, and the bytes of those that are present.
type written struct {
	runs []image.Run
	data []byte
}

// writeMixed makes a set of mixed pages in pieces of all sizes.
func writeMixed(t *testing.T, to sinks.Sink) written {
	t.Helper()
	var w written
	p, err := to.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	data := mixed(700)
	for addr := uint64(0x10000); len(data) > 0; {
		n := min(1+r.IntN(90), len(data)/image.PageSize)
		flags := image.PEPresent
		if r.IntN(4) == 0 {
			flags |= image.PELazy
		}
		if err := p.Add(addr, uint64(n), flags); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(data[:n*image.PageSize]); err != nil {
			t.Fatal(err)
		}
		w.data = append(w.data, data[:n*image.PageSize]...)
		data = data[n*image.PageSize:]
		last := len(w.runs) - 1
		if last >= 0 && w.runs[last].End() == addr && w.runs[last].Flags == flags {
			w.runs[last].Pages += uint64(n)
		} else {
			w.runs = append(w.runs, image.Run{Addr: addr, Pages: uint64(n), Flags: flags})
		}
		addr += uint64(n+r.IntN(3)) * image.PageSize
	}
	if err := errors.Join(p.Close(), to.Commit(readInventory(t, openSet(t, golden)))); err != nil {
		t.Fatal(err)
	}
	return w
}

func readMixed(t *testing.T, dir string) (w written) {
	t.Helper()
	src, err := image.Expand(openSet(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.ReadPagemap(src, image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for run, err := range m.Runs() {
		if err != nil {
			t.Fatal(err)
		}
		w.runs = append(w.runs, run)
	}
	pages, err := src.OpenPages(m.PagesID)
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	if w.data, err = io.ReadAll(io.NewSectionReader(pages, 0, pages.Size)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w written) same(t *testing.T, other written) {
	t.Helper()
	if diff := cmp.Diff(w.runs, other.runs); diff != "" {
		t.Errorf("runs:\n%s", diff)
	}
	if !bytes.Equal(w.data, other.data) {
		t.Error("the bytes are others")
	}
}

func TestCompress(t *testing.T) {
	for _, codec := range []image.Codec{image.LZ4, image.Zstd} {
		for _, block := range []int{image.PageSize, sinks.DefaultBlock, image.MaxBlock} {
			t.Run(fmt.Sprintf("%v/%d", codec, block), func(t *testing.T) {
				dir := t.TempDir()
				to, err := sinks.Compress(newDir(t, dir, sinks.DirOptions{}), codec, block)
				if err != nil {
					t.Fatal(err)
				}
				want := writeMixed(t, to)
				st, err := os.Stat(filepath.Join(dir, "pages-1.img"))
				if err != nil || st.Size() > int64(len(want.data))/2 {
					t.Errorf("%d bytes are stored of %d: %v", st.Size(), len(want.data), err)
				}
				want.same(t, readMixed(t, dir))
			})
		}
	}
}

func TestRecode(t *testing.T) {
	dir := t.TempDir()
	want := writeMixed(t, newDir(t, dir, sinks.DirOptions{}))
	plain := readDir(t, dir)
	for _, codec := range []image.Codec{image.LZ4, image.Zstd, image.LZ4, image.Plain} {
		if err := sinks.Recode(dir, codec, sinks.DefaultBlock); err != nil {
			t.Fatalf("%v: %v", codec, err)
		}
		want.same(t, readMixed(t, dir))
	}
	if !maps.EqualFunc(plain, readDir(t, dir), bytes.Equal) {
		t.Error("the plain set has changed")
	}
}

// readDir is all files of a directory.
func readDir(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestCompressFails has the pages file full: the error comes out, and nobody waits for ever.
func TestCompressFails(t *testing.T) {
	to, err := sinks.Compress(fullSink{newDir(t, t.TempDir(), sinks.DirOptions{})}, image.LZ4, image.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	p, err := to.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	data := mixed(300)
	err = p.Add(0, 300, image.PEPresent)
	if err == nil {
		_, err = p.Write(data)
	}
	if cerr := p.Close(); cerr == nil {
		t.Errorf("Close succeeded, after %v", err)
	}
}

// fullSink has no room for pages.
type fullSink struct{ sinks.Sink }

func (s fullSink) Create(name string) (sinks.Writer, error) {
	if name == "pages-1.img" {
		return os.OpenFile("/dev/full", os.O_WRONLY, 0)
	}
	return s.Sink.Create(name)
}
