package extents

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestOf writes pieces into a sparse file and asks both ways which parts hold data: they cover all that was written, and
// what they leave out is zero.
func TestOf(t *testing.T) {
	const size, block = 4 << 20, 4096
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	written := map[int64]bool{}
	for range 60 {
		at := rand.Int64N(size/block) * block
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
		written[at] = true
	}
	if err := f.Truncate(size - 100); err != nil {
		t.Fatal(err)
	}
	for _, fiemap := range []bool{false, true} {
		list, err := Of(int(f.Fd()), size-100, fiemap)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(-1)
		for _, e := range list {
			if e.Off <= end || e.Len <= 0 || e.Off+e.Len > size-100 {
				t.Errorf("fiemap %v: extent %+v after %d", fiemap, e, end)
			}
			end = e.Off + e.Len
		}
		for at := range written {
			if !slices.ContainsFunc(list, func(e Extent) bool { return at >= e.Off && at < e.Off+e.Len }) {
				t.Errorf("fiemap %v: the data at %d are in no extent of %v", fiemap, at, list)
			}
		}
	}
}

func TestEmpty(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{0, 1 << 20} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, fiemap := range []bool{false, true} {
			if list, err := Of(int(f.Fd()), size, fiemap); err != nil || len(list) != 0 {
				t.Errorf("size %d, fiemap %v: %v, %v", size, fiemap, list, err)
			}
		}
	}
}
