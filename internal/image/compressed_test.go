package image_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/pierrec/lz4/v4"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// packing is one way to store compressed pages.
type packing struct {
	name         string
	pages        uint64 // a block
	padded       bool
	lie          func(sizes []uint32) // spoils what the entry says
	wrongVersion bool
}

// memory is pages of all sorts: zeros, text, noise.
func memory(pages int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, pages*image.PageSize)
	for p := range pages {
		page := b[p*image.PageSize:][:image.PageSize]
		switch p / 3 % 3 {
		case 1:
			copy(page, bytes.Repeat([]byte("text "), 800))
		case 2:
			for i := range page {
				page[i] = byte(r.Uint32())
			}
		}
	}
	return b
}

// pack stores the bytes of a run and makes its entry.
func pack(k packing, run image.Run, data []byte, pages *bytes.Buffer) *pagemap.PagemapEntry {
	flags := run.Flags
	if k.padded {
		flags |= 8
		pages.Write(make([]byte, -pages.Len()&(image.PageSize-1)))
	}
	var sizes []uint32
	var total uint64
	for len(data) > 0 {
		plain := data[:min(len(data), int(k.pages)*image.PageSize)]
		data = data[len(plain):]
		packed := make([]byte, lz4.CompressBlockBound(len(plain)))
		n, _ := lz4.CompressBlock(plain, packed, nil)
		switch {
		case bytes.Count(plain, []byte{0}) == len(plain):
			packed = nil
		case n == 0 || n >= len(plain)*7/8:
			packed = plain
		default:
			packed = packed[:n]
		}
		sizes = append(sizes, uint32(len(packed)))
		pages.Write(packed)
		if k.padded {
			packed = append(packed[:len(packed):len(packed)], make([]byte, -len(packed)&(image.PageSize-1))...)
			pages.Write(make([]byte, len(packed)-int(sizes[len(sizes)-1])))
		}
		total += uint64(len(packed))
	}
	if k.lie != nil {
		k.lie(sizes)
	}
	var packedSizes, blocks []byte
	for _, s := range sizes {
		packedSizes = protowire.AppendVarint(packedSizes, uint64(s))
	}
	blocks = protowire.AppendBytes(protowire.AppendTag(blocks, 1, protowire.BytesType), packedSizes)
	blocks = protowire.AppendVarint(protowire.AppendTag(blocks, 2, protowire.VarintType), total)
	blocks = protowire.AppendVarint(protowire.AppendTag(blocks, 3, protowire.VarintType), k.pages)
	if k.padded {
		blocks = protowire.AppendVarint(protowire.AppendTag(blocks, 4, protowire.VarintType), 1)
	}
	e := &pagemap.PagemapEntry{Vaddr: &run.Addr, CompatNrPages: proto.Uint32(0), NrPages: &run.Pages, Flags: &flags}
	e.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 6, protowire.BytesType), blocks))
	return e
}

// packedSet makes a set of one page map with two compressed runs and a plain one between them.
func packedSet(t *testing.T, k packing) (src image.Source, want []byte, runs []image.Run) {
	t.Helper()
	dir := t.TempDir()
	data := memory(40)
	runs = []image.Run{
		{Addr: 0x10000, Pages: 21, Flags: image.PEPresent},
		{Addr: 0x80000, Pages: 3, Flags: image.PEPresent | image.PELazy},
		{Addr: 0x90000, Pages: 2, Flags: image.PELazy},
		{Addr: 0xa0000, Pages: 16, Flags: image.PEPresent},
	}
	var pages, maps bytes.Buffer
	enc := image.NewEncoder(&maps, "pagemap-1.img", image.Pagemap.Type)
	err := enc.Entry(&pagemap.PagemapHead{PagesId: proto.Uint32(1)})
	rest := data
	for i, r := range runs {
		if i == 1 {
			err = errors.Join(err, enc.Run(r))
			pages.Write(rest[:r.Bytes()])
		} else if i == 2 {
			err = errors.Join(err, enc.Run(r))
			continue
		} else {
			err = errors.Join(err, enc.Entry(pack(k, r, rest[:r.Bytes()], &pages)))
		}
		rest = rest[r.Bytes():]
	}
	version := proto.Uint32(image.FormatV1_2)
	if k.wrongVersion {
		version = proto.Uint32(image.FormatV1_1)
	}
	err = errors.Join(err, enc.Flush(),
		image.Write(dirSet(dir), image.Inventory, 0, &inventory.InventoryEntry{ImgVersion: version}),
		os.WriteFile(filepath.Join(dir, "pagemap-1.img"), maps.Bytes(), 0o600),
		os.WriteFile(filepath.Join(dir, "pages-1.img"), pages.Bytes(), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	set, err := image.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	if src, err = image.Expand(set); err != nil {
		t.Fatal(err)
	}
	return src, data, runs
}

func readPacked(src image.Source) ([]byte, []image.Run, error) {
	p, err := image.ReadPagemap(src, image.TaskPages, 1)
	if err != nil {
		return nil, nil, err
	}
	defer p.Close()
	var runs []image.Run
	for r, err := range p.Runs() {
		if err != nil {
			return nil, nil, err
		}
		runs = append(runs, r)
	}
	pages, err := src.OpenPages(p.PagesID)
	if err != nil {
		return nil, nil, err
	}
	defer pages.Close()
	b := make([]byte, pages.Size)
	_, err = pages.ReadAt(b, 0)
	return b, runs, err
}

// Compressed pages read as if they had been stored plainly.
func TestExpand(t *testing.T) {
	for _, k := range []packing{
		{name: "a page a block", pages: 1},
		{name: "regions", pages: 8},
		{name: "one region", pages: 1024},
		{name: "padded", pages: 4, padded: true},
	} {
		t.Run(k.name, func(t *testing.T) {
			src, want, runs := packedSet(t, k)
			got, gotRuns, err := readPacked(src)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes differ from the %d that were packed", len(got), len(want))
			}
			for i := range runs {
				if gotRuns[i] != runs[i] {
					t.Errorf("run %+v, want %+v", gotRuns[i], runs[i])
				}
			}
		})
	}
}

// Any part of a compressed file can be read and mapped, and released without harm to the rest.
func TestExpandParts(t *testing.T) {
	for _, k := range []packing{{name: "regions", pages: 8}, {name: "padded", pages: 4, padded: true}} {
		t.Run(k.name, func(t *testing.T) {
			src, want, _ := packedSet(t, k)
			if _, _, err := readPacked(src); err != nil {
				t.Fatal(err)
			}
			pages, err := src.OpenPages(1)
			if err != nil {
				t.Fatal(err)
			}
			defer pages.Close()
			random := rand.New(rand.NewPCG(1, 2))
			for range 500 {
				off := random.Int64N(pages.Size)
				b := make([]byte, random.Int64N(pages.Size-off)+1)
				if n, err := pages.ReadAt(b, off); n != len(b) || err != nil || !bytes.Equal(b, want[off:][:n]) {
					t.Fatalf("%d bytes at %d: %d read, %v", len(b), off, n, err)
				}
				off &^= image.PageSize - 1
				w, err := pages.Window(off, int64(len(b)))
				if err != nil || !bytes.Equal(w.Bytes, want[off:][:len(b)]) {
					t.Fatalf("window of %d bytes at %d: %v", len(b), off, err)
				}
				w.Close()
			}
			if n, err := pages.ReadAt(make([]byte, 10), pages.Size-3); n != 3 || err != io.EOF {
				t.Errorf("at the end: %d bytes, %v", n, err)
			}
		})
	}
}

func TestExpandMistakes(t *testing.T) {
	for _, k := range []packing{
		{name: "too many pages", pages: 1025},
		{name: "sizes that are not those", pages: 2, lie: func(s []uint32) { s[1]++ }},
		{name: "larger than its pages", pages: 1, lie: func(s []uint32) { s[0] = image.PageSize + 1 }},
		{name: "exchanged", pages: 1, lie: func(s []uint32) { s[3], s[9] = s[9], s[3] }},
		{name: "inventory does not say so", pages: 1, wrongVersion: true},
	} {
		t.Run(k.name, func(t *testing.T) {
			src, _, _ := packedSet(t, k)
			if _, _, err := readPacked(src); err == nil || !strings.Contains(err.Error(), ".img") {
				t.Errorf("error %v, want one that names a file", err)
			}
		})
	}
}
