package sinks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"cryo/internal/image"
	"cryo/internal/pagecopy"
	"cryo/sinks"
)

// pageSource is pages that begin at address 0.
type pageSource []byte

func (s pageSource) ReadPages(ranges []pagecopy.Range, buf []byte) error {
	for _, r := range ranges {
		buf = buf[copy(buf[:r.Len], s[r.Addr:]):]
	}
	return nil
}

// TestCompressWhereRead has the workers of a copier compress what they have read, in blocks of all sizes; pages of zeros make for runs
// without number.
func TestCompressWhereRead(t *testing.T) {
	const pages = 3000
	src := pageSource(mixed(pages))
	for _, codec := range []image.Codec{image.LZ4, image.Zstd} {
		for _, block := range []int{1, 3, 16, 64, 300} {
			for _, keepZero := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v by %d, %v", codec, block, keepZero), func(t *testing.T) {
					dir := t.TempDir()
					to, err := sinks.Compress(newDir(t, dir, sinks.DirOptions{}), codec, block*image.PageSize)
					if err != nil {
						t.Fatal(err)
					}
					p, err := to.Pagemap(image.TaskPages, 1)
					if err != nil {
						t.Fatal(err)
					}
					c := pagecopy.New(context.Background(), src, p, 2, new(pagecopy.Stats))
					r := rand.New(rand.NewPCG(5, 6))
					for at := 0; at < pages; {
						n := min(1+r.IntN(700), pages-at)
						if err := c.Put(pagecopy.Range{Addr: uint64(at) * image.PageSize, Len: uint64(n) * image.PageSize, KeepZero: keepZero}); err != nil {
							t.Fatal(err)
						}
						at += n
					}
					if err := errors.Join(c.Close(), p.Close(), to.Commit(readInventory(t, openSet(t, golden)))); err != nil {
						t.Fatal(err)
					}
					got := readMixed(t, dir)
					back := make([]byte, len(src))
					for _, run := range got.runs {
						got.data = got.data[copy(back[run.Addr:run.End()], got.data):]
					}
					if !bytes.Equal(back, src) {
						t.Error("other bytes come back")
					}
				})
			}
		}
	}
}
