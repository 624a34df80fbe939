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
)

var testKey = image.Key(strings.Repeat("k", 32))

// encrypted makes an encrypted set of mixed pages.
func encrypted(t *testing.T, dir string, codec image.Codec) written {
	t.Helper()
	to, err := sinks.Compress(sinks.Encrypt(newDir(t, dir, sinks.DirOptions{}), testKey), codec, sinks.DefaultBlock)
	if err != nil {
		t.Fatal(err)
	}
	return writeMixed(t, to)
}

// readEncrypted reads all of a set.
func readEncrypted(src image.Source, key image.Key) (w written, err error) {
	if src, err = image.Unseal(src, key); err == nil {
		src, err = image.Expand(src)
	}
	if err != nil {
		return w, err
	}
	m, err := image.ReadPagemap(src, image.TaskPages, 1)
	if err != nil {
		return w, err
	}
	defer m.Close()
	for run, err := range m.Runs() {
		if err != nil {
			return w, err
		}
		w.runs = append(w.runs, run)
	}
	pages, err := src.OpenPages(m.PagesID)
	if err != nil {
		return w, err
	}
	defer pages.Close()
	w.data, err = io.ReadAll(io.NewSectionReader(pages, 0, pages.Size))
	return w, err
}

func TestEncrypt(t *testing.T) {
	for _, codec := range []image.Codec{image.Plain, image.Zstd} {
		dir := t.TempDir()
		want := encrypted(t, dir, codec)
		got, err := readEncrypted(openSet(t, dir), testKey)
		if err != nil {
			t.Fatal(err)
		}
		want.same(t, got)
		for name, b := range readDir(t, dir) {
			if bytes.Contains(b, []byte("text ")) {
				t.Errorf("%s is readable", name)
			}
		}
	}
}

// TestEncryptedChanged has every change of a set noticed.
func TestEncryptedChanged(t *testing.T) {
	other := t.TempDir()
	encrypted(t, other, image.Plain)
	swap := func(name string) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(other, name))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
	}
	cut := func(name string, to int64) func(string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, name), to) }
	}
	const chunk = 64<<10 + 16
	for name, change := range map[string]func(dir string) error{
		"a bit": func(dir string) error {
			p := filepath.Join(dir, "pages-1.img")
			b, err := os.ReadFile(p)
			b[len(b)/2] ^= 1
			return errors.Join(err, os.WriteFile(p, b, 0o600))
		},
		"cut between chunks": cut("pages-1.img", 40+3*chunk),
		"cut in a chunk":     cut("pages-1.img", 40+3*chunk+7),
		"empty":              cut("pagemap-1.img", 0),
		"of another set":     swap("pages-1.img"),
		"another list":       swap("manifest.img"),
		"removed":            func(dir string) error { return os.Remove(filepath.Join(dir, "pagemap-1.img")) },
		"under another name": func(dir string) error {
			return os.Rename(filepath.Join(dir, "pages-1.img"), filepath.Join(dir, "pagemap-1.img"))
		},
	} {
		dir := t.TempDir()
		encrypted(t, dir, image.Plain)
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := readEncrypted(openSet(t, dir), testKey); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	if _, err := readEncrypted(openSet(t, other), image.Key(strings.Repeat("x", 32))); !errors.Is(err, image.ErrKey) {
		t.Errorf("another key: %v", err)
	}
}
