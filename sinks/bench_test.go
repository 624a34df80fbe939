package sinks_test

import (
	"bytes"
	"io"
	"testing"

	"cryo/internal/image"
	"cryo/sinks"
)

// BenchmarkPagemap writes and reads a page map in which no two runs touch; an operation is one entry.
func BenchmarkPagemap(b *testing.B) {
	dir := b.TempDir()
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		p, err := newDir(b, dir, sinks.DirOptions{}).Pagemap(image.TaskPages, 1)
		if err != nil {
			b.Fatal(err)
		}
		for n := range uint64(b.N) {
			if err := p.Add(n*2*image.PageSize, 1, image.PELazy); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		src := openSet(b, dir)
		for n := 0; n < b.N; {
			p, err := image.ReadPagemap(src, image.TaskPages, 1)
			if err != nil {
				b.Fatal(err)
			}
			for _, err := range p.Runs() {
				if err != nil {
					b.Fatal(err)
				}
				if n++; n == b.N {
					break
				}
			}
			p.Close()
		}
	})
}

// BenchmarkStream moves a large pages file into a stream and out of it.
func BenchmarkStream(b *testing.B) {
	const pages = 1 << 14
	data := bytes.Repeat([]byte("0123456789abcdef"), pages*image.PageSize/16)
	send := func(w io.Writer) {
		s := sinks.NewStream(sinks.StreamOptions{}, w)
		p, err := s.Pagemap(image.TaskPages, 1)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Add(0, pages, image.PEPresent); err != nil {
			b.Fatal(err)
		}
		if _, err := p.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		if err := s.Commit(readInventory(b, openSet(b, golden))); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("send", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			send(io.Discard)
		}
	})
	var whole bytes.Buffer
	send(&whole)
	b.Run("receive", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			src, err := sinks.ReadStream(nil, bytes.NewReader(whole.Bytes()))
			if err != nil {
				b.Fatal(err)
			}
			src.Close()
		}
	})
}
