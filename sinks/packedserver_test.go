package sinks_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/pagexfer"
	"cryo/sinks"
)

// serveInto starts a server of one connection.
func serveInto(t *testing.T, at string) (client io.ReadWriteCloser, done chan error) {
	t.Helper()
	c, server := loopback(t)
	store := newDir(t, at, sinks.DirOptions{PagesOnly: true, FirstPages: sinks.ServerPagesBase})
	done = make(chan error, 1)
	go func() {
		_, err := sinks.ServePages(server, store)
		done <- err
	}()
	return c, done
}

// TestPackedPageServer sends the golden set compressed; what the server has expands to the same pages.
func TestPackedPageServer(t *testing.T) {
	for _, codec := range []image.Codec{image.LZ4, image.Zstd} {
		client, server := loopback(t)
		at := t.TempDir()
		done := make(chan error, 1)
		store := newDir(t, at, sinks.DirOptions{PagesOnly: true})
		go func() {
			_, err := sinks.ServePages(server, store)
			done <- err
		}()
		src := openSet(t, golden)
		to, err := sinks.Compress(sinks.NewPageServer(newDir(t, at, sinks.DirOptions{}), client, false), codec, sinks.DefaultBlock)
		if err != nil {
			t.Fatal(err)
		}
		copyMetadata(t, golden, to, isPages)
		copyPages(t, src, to)
		if err := errors.Join(to.Commit(readInventory(t, src)), <-done); err != nil {
			t.Fatal(err)
		}
		got, err := image.Expand(openSet(t, at))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range goldenObjects(t, src) {
			if want, have := pagesOf(t, src, o.kind, o.id), pagesOf(t, got, o.kind, o.id); want != have {
				t.Errorf("object %v: other pages arrived", o)
			}
		}
	}
}

// pagesOf is all that an object's page map and pages say.
func pagesOf(t *testing.T, src image.Source, kind image.PagemapKind, id uint64) string {
	t.Helper()
	var text strings.Builder
	m, err := image.ReadPagemap(src, kind, id)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pages, err := src.OpenPages(m.PagesID)
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	off := int64(0)
	page := make([]byte, image.PageSize)
	for run, err := range m.Runs() {
		if err != nil {
			t.Fatal(err)
		}
		for at := run.Addr; at < run.End(); at += image.PageSize {
			binary.Write(&text, binary.LittleEndian, []uint64{at, uint64(run.Flags)})
			if run.Flags&image.PEPresent == 0 {
				continue
			}
			if _, err := pages.ReadAt(page, off); err != nil {
				t.Fatal(err)
			}
			text.Write(page)
			off += image.PageSize
		}
	}
	return text.String()
}

// TestLyingPackedClient says wrong things about compressed pages: the server keeps nothing.
func TestLyingPackedClient(t *testing.T) {
	object := pagexfer.Object(image.TaskPages, 1)
	open := pagexfer.Msg{Cmd: pagexfer.Open2, Object: object, Pages: pagexfer.AskPacked}
	packed := pagexfer.Msg{Cmd: pagexfer.AddPacked, Object: object, Pages: 4, Addr: 0x10000, Flags: uint16(image.PEPresent)}
	with := func(change func(*pagexfer.Msg)) pagexfer.Msg { m := packed; change(&m); return m }
	words := func(w ...uint32) (b []byte) {
		for _, v := range w {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	for name, say := range map[string]struct {
		m     pagexfer.Msg
		after []byte
		want  string
	}{
		"not open":        {with(func(m *pagexfer.Msg) { m.Object = pagexfer.Object(image.TaskPages, 2) }), words(1, 1), "not open"},
		"no pages":        {with(func(m *pagexfer.Msg) { m.Pages = 0 }), words(1, 1), "0 compressed pages"},
		"too many pages":  {with(func(m *pagexfer.Msg) { m.Pages = 1 << 40 }), words(1, 1), "compressed pages"},
		"absent pages":    {with(func(m *pagexfer.Msg) { m.Flags = 0 }), words(1, 1), "with flags 0x0"},
		"no page":         {with(func(m *pagexfer.Msg) { m.Addr++ }), words(1, 4, 0), "are no pages"},
		"past the end":    {with(func(m *pagexfer.Msg) { m.Addr = ^uint64(0xfff) }), words(1, 4, 0), "are no pages"},
		"unknown codec":   {packed, words(7, 1), "compressed in way 7"},
		"plain":           {packed, words(0, 1), "compressed in way 0"},
		"empty blocks":    {packed, words(1, 0), "blocks of 0 pages"},
		"huge blocks":     {packed, words(1, 1<<30), "blocks of"},
		"grown block":     {packed, words(1, 1, image.PageSize+1), "has 4097 bytes"},
		"half a block":    {packed, append(words(1, 4, 100), 1, 2, 3), "97 bytes of a block missing"},
		"without a block": {packed, words(1, 1, 0, 0), "EOF"},
	} {
		at := t.TempDir()
		client, done := serveInto(t, at)
		if _, err := client.Write(open.Append(nil)); err != nil {
			t.Fatal(err)
		}
		var answer [1]byte
		if _, err := io.ReadFull(client, answer[:]); err != nil || answer[0] != pagexfer.TakesPacked {
			t.Fatalf("the server answers %d, %v", answer[0], err)
		}
		client.Write(append(say.m.Append(nil), say.after...))
		client.(interface{ CloseWrite() error }).CloseWrite()
		if err := <-done; err == nil || !strings.Contains(err.Error(), say.want) {
			t.Errorf("%s: %v, without %q", name, err, say.want)
		}
		if left, _ := os.ReadDir(at); len(left) != 0 {
			t.Errorf("%s: the server kept %v", name, names(left))
		}
		client.Close()
	}
}
