package image_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"testing"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"google.golang.org/protobuf/proto"
)

func owner() *fown.FownEntry {
	zero := proto.Uint32(0)
	return &fown.FownEntry{Uid: zero, Euid: zero, Signum: zero, PidType: zero, Pid: zero}
}

// memSource is a set in memory.
type memSource map[string][]byte

func (m memSource) Open(name string) (io.ReadCloser, error) {
	b, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
func (m memSource) Exists(name string) (bool, error)          { return m[name] != nil, nil }
func (m memSource) OpenPages(id uint32) (*image.Pages, error) { return nil, fs.ErrNotExist }
func (m memSource) Parent() (image.Source, error)             { return nil, nil }
func (m memSource) Close() error                              { return nil }
func (m memSource) String() string                            { return "memory" }

// FuzzDecoder: whatever the bytes, no panic; what decodes, encodes to something that decodes to the same. The
// magic number picks the kind, so the seeds, one golden file of every kind and one empty image of those no golden
// set has, lead to all of them.
func FuzzDecoder(f *testing.F) {
	for _, name := range goldenFiles(f) {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, ty := range image.Types() {
		var b bytes.Buffer
		if err := image.NewEncoder(&b, "x", ty).Flush(); err != nil {
			f.Fatal(err)
		}
		f.Add(append(b.Bytes(), 2, 0, 0, 0, 8, 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		once, err := recode(b, "fuzzed.img")
		if err != nil {
			return
		}
		twice, err := recode(once, "fuzzed.img")
		if err != nil {
			t.Fatalf("what was encoded does not decode: %v", err)
		}
		if !bytes.Equal(once, twice) {
			t.Fatal("encoding is not stable")
		}
	})
}

// FuzzPagemap: runs of whatever bytes ascend and do not wrap.
func FuzzPagemap(f *testing.F) {
	src, err := os.ReadDir(golden + "/golden")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range src {
		if b, err := os.ReadFile(golden + "/golden/" + e.Name()); err == nil && len(e.Name()) > 8 && e.Name()[:8] == "pagemap-" {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := image.ReadPagemap(memSource{image.Pagemap.File(1): b}, image.TaskPages, 1)
		if err != nil {
			return
		}
		var end uint64
		for run, err := range p.Runs() {
			if err != nil {
				return
			}
			if run.Addr < end || run.End() < run.Addr {
				t.Fatalf("run %+v after %#x", run, end)
			}
			end = run.End()
		}
	})
}
