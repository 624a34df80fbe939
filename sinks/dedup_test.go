package sinks_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"
)

// writePages makes a set with one page map; bytes of a page are its generation.
func writePages(t *testing.T, dir, parent string, generation byte, runs ...image.Run) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	to := newDir(t, dir, sinks.DirOptions{Parent: parent})
	p, err := to.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if err := p.Add(r.Addr, r.Pages, r.Flags); err != nil {
			t.Fatal(err)
		}
		if r.Flags&image.PEPresent != 0 {
			if _, err := p.Write(bytes.Repeat([]byte{generation}, int(r.Bytes()))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(p.Close(), to.Commit(readInventory(t, openSet(t, golden)))); err != nil {
		t.Fatal(err)
	}
}

// pagesLeft tells which pages of a pages file are not zero.
func pagesLeft(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "pages-1.img"))
	if err != nil {
		t.Fatal(err)
	}
	var left []byte
	for len(b) > 0 {
		left = append(left, '0'+b[0])
		b = b[image.PageSize:]
	}
	return string(left)
}

func TestDedup(t *testing.T) {
	base := t.TempDir()
	at := func(n string) string { return filepath.Join(base, n) }
	const page = image.PageSize
	writePages(t, at("1"), "", 1, image.Run{Addr: 0, Pages: 8, Flags: image.PEPresent}, image.Run{Addr: 16 * page, Pages: 2, Flags: image.PEPresent})
	writePages(t, at("2"), "../1", 2,
		image.Run{Addr: 0, Pages: 2, Flags: image.PEParent},
		image.Run{Addr: 2 * page, Pages: 2, Flags: image.PEPresent},
		image.Run{Addr: 4 * page, Pages: 4, Flags: image.PEParent},
		image.Run{Addr: 16 * page, Pages: 1, Flags: image.PEPresent})
	writePages(t, at("3"), "../2", 3,
		image.Run{Addr: 1 * page, Pages: 2, Flags: image.PEPresent},
		image.Run{Addr: 3 * page, Pages: 1, Flags: image.PEParent},
		image.Run{Addr: 7 * page, Pages: 10, Flags: image.PEPresent})
	freed, err := sinks.Dedup(openSet(t, at("3")))
	if err != nil {
		t.Fatal(err)
	}
	for set, want := range map[string]string{"1": "1001111001", "2": "020", "3": "333333333333"} {
		if got := pagesLeft(t, at(set)); got != want {
			t.Errorf("set %s has %s left, want %s", set, got, want)
		}
	}
	if want := int64(4+2) * page; freed != want {
		t.Errorf("%d bytes were freed, want %d", freed, want)
	}
}

func TestEmpty(t *testing.T) {
	base := t.TempDir()
	const page = image.PageSize
	writePages(t, filepath.Join(base, "1"), "", 1, image.Run{Addr: 0, Pages: 8, Flags: image.PEPresent})
	writePages(t, filepath.Join(base, "2"), "../1", 2, image.Run{Addr: 0, Pages: 2, Flags: image.PEPresent}, image.Run{Addr: 2 * page, Pages: 6, Flags: image.PEParent})
	set := openSet(t, filepath.Join(base, "2"))
	freed, err := sinks.Empty(set)
	if err != nil || freed != 10*page {
		t.Errorf("Empty gives %d bytes back (%v), want %d", freed, err, 10*page)
	}
	if got := pagesLeft(t, filepath.Join(base, "1")) + pagesLeft(t, filepath.Join(base, "2")); got != "0000000000" {
		t.Errorf("pages left are %s", got)
	}
}
