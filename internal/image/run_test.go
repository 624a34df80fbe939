package image

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// The hand-made codec of runs against the message's own.
func TestRunCodec(t *testing.T) {
	for range 10000 {
		run := Run{Addr: rand.Uint64() >> rand.IntN(52) << 12 >> 1 &^ 0xfff, Pages: rand.Uint64() >> (20 + rand.IntN(44)), Flags: rand.Uint32() & 7}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pagemap.PagemapEntry{
			Vaddr: &run.Addr, CompatNrPages: proto.Uint32(0), NrPages: &run.Pages, Flags: &run.Flags,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := appendRun(nil, run); !bytes.Equal(got, want) {
			t.Fatalf("%+v is encoded as %x, not %x", run, got, want)
		}
		if got, err := parseRun(want, new(storage)); got != run || (err == nil) != (run.check() == nil) {
			t.Fatalf("%+v is decoded as %+v, %v", run, got, err)
		}
	}
}

func TestRunOfOldWriters(t *testing.T) {
	vaddr, nr := proto.Uint64(0x1000), proto.Uint32(3)
	for _, c := range []struct {
		entry *pagemap.PagemapEntry
		want  Run
	}{
		{&pagemap.PagemapEntry{Vaddr: vaddr, CompatNrPages: nr}, Run{0x1000, 3, PEPresent}},
		{&pagemap.PagemapEntry{Vaddr: vaddr, CompatNrPages: nr, InParent: proto.Bool(true)}, Run{0x1000, 3, PEParent}},
		{&pagemap.PagemapEntry{Vaddr: vaddr, CompatNrPages: nr, InParent: proto.Bool(false)}, Run{0x1000, 3, PEPresent}},
		{&pagemap.PagemapEntry{Vaddr: vaddr, CompatNrPages: nr, Flags: proto.Uint32(PELazy)}, Run{0x1000, 3, PELazy}},
		{&pagemap.PagemapEntry{Vaddr: vaddr, CompatNrPages: nr, NrPages: proto.Uint64(5), Flags: proto.Uint32(0)}, Run{0x1000, 5, 0}},
	} {
		b, err := proto.Marshal(c.entry)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseRun(b, new(storage)); got != c.want || err != nil {
			t.Errorf("%v: %+v, %v; want %+v", c.entry, got, err, c.want)
		}
	}
	if _, err := parseRun(nil, new(storage)); err == nil {
		t.Error("an empty entry was taken")
	}
}

// A run that is longer than others can count is several entries.
func TestLongRun(t *testing.T) {
	for _, c := range []struct {
		run  Run
		want []Run
	}{
		{Run{0x1000, longRun, PEPresent}, []Run{{0x1000, longRun, PEPresent}}},
		{Run{0x1000, 2*longRun + 3, PEPresent | PELazy}, []Run{
			{0x1000, longRun, PEPresent | PELazy},
			{0x1000 + longRun*PageSize, longRun, PEPresent | PELazy},
			{0x1000 + 2*longRun*PageSize, 3, PEPresent | PELazy},
		}},
		{Run{0x1000, maxSplit + 1, PELazy}, []Run{{0x1000, maxSplit + 1, PELazy}}},
	} {
		var file bytes.Buffer
		enc := NewEncoder(&file, "pagemap-1.img", Pagemap.Type)
		err := errors.Join(enc.Entry(&pagemap.PagemapHead{PagesId: proto.Uint32(1)}), enc.Run(c.run), enc.Flush())
		if err != nil {
			t.Fatal(err)
		}
		dec, err := NewDecoder(&file, "pagemap-1.img", Pagemap.Type)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dec.Next(); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			b, err := dec.NextBytes()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := parseRun(b, new(storage)); got != want || err != nil {
				t.Errorf("%+v: entry %+v, %v; want %+v", c.run, got, err, want)
			}
		}
		if _, err := dec.NextBytes(); err != io.EOF {
			t.Errorf("%+v: one more entry, %v", c.run, err)
		}
	}
}
