package sinks

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"cryo/internal/image"

	"golang.org/x/sync/errgroup"
)

// SumsName is the file with the checksums of all others of a set, as sha256sum writes and reads it.
const SumsName = "SHA256SUMS"

// writeSums writes the checksums of the files that were made, and of the inventory that is about to be.
func (d *Dir) writeSums(inventory []byte) error {
	here, err := d.reading()
	if err != nil {
		return err
	}
	defer here.Close()
	d.mu.Lock()
	names := slices.Clone(d.created)
	d.mu.Unlock()
	names = slices.DeleteFunc(names, func(n string) bool { return n == inventoryTemp || n == parentName })
	sums, err := sumAll(here, names)
	if err != nil {
		return err
	}
	sums[inventoryName] = sha256.Sum256(inventory)
	var list bytes.Buffer
	for _, name := range append(names, inventoryName) {
		fmt.Fprintf(&list, "%x  %s\n", sums[name], name)
	}
	return writeFile(d, SumsName, list.Bytes())
}

// sumAll makes the checksums of some files, several at a time.
func sumAll(set *image.Dir, names []string) (map[string][sha256.Size]byte, error) {
	all := make([][sha256.Size]byte, len(names))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range names {
		g.Go(func() error {
			f, _, err := set.OpenFile(name)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
				return err
			}
			h.Sum(all[i][:0])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	sums := map[string][sha256.Size]byte{}
	for i, name := range names {
		sums[name] = all[i]
	}
	return sums, nil
}

// maxSums bounds the list of checksums.
const maxSums = 64 << 20

// Verify compares all files of a set, and of those it builds on, with their checksums. A set without checksums is an error
// if they are demanded; else it is as good as its files.
func Verify(set *image.Dir, demanded bool) error {
	f, size, err := set.OpenFile(SumsName)
	switch {
	case errors.Is(err, fs.ErrNotExist) && demanded:
		return fmt.Errorf("%s has no checksums: it was dumped without --checksum", set)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer f.Close()
	if size > maxSums {
		return fmt.Errorf("%s/%s has %d bytes, which no list of checksums has", set, SumsName, size)
	}
	if err := verify(set, f); err != nil {
		return err
	}
	up, err := set.Parent()
	if err != nil || up == nil {
		return err
	}
	defer up.Close()
	return Verify(up.(*image.Dir), demanded)
}

func verify(set *image.Dir, list io.Reader) error {
	want := map[string]string{}
	var names []string
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok || image.CheckName(name) != nil || want[name] != "" {
			return fmt.Errorf("%s/%s: %.80q is no line of checksums", set, SumsName, lines.Text())
		}
		want[name], names = sum, append(names, name)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	there, err := set.Names()
	if err != nil {
		return err
	}
	for _, name := range there {
		if strings.HasSuffix(name, ".img") && want[name] == "" {
			return fmt.Errorf("%s/%s is not among the files that were dumped: its checksum is missing", set, name)
		}
	}
	sums, err := sumAll(set, names)
	if err != nil {
		return fmt.Errorf("checksums: %w", err)
	}
	for _, name := range names {
		sum := sums[name]
		if hex.EncodeToString(sum[:]) != want[name] {
			return fmt.Errorf("%s/%s is not as it was dumped: its checksum is another", set, name)
		}
	}
	return nil
}
