package sinks_test

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cryo/sinks"
)

// goldenShards is the golden set, spread over n pipes.
func goldenShards(t testing.TB, n int) [][]byte {
	t.Helper()
	out := make([]bytes.Buffer, n)
	var to []io.Writer
	for i := range out {
		to = append(to, &out[i])
	}
	s := sinks.NewStream(sinks.StreamOptions{}, to...)
	src := openSet(t, golden)
	copyMetadata(t, golden, s, isPages)
	copyPages(t, src, s)
	if err := errors.Join(s.Commit(readInventory(t, src)), s.Close()); err != nil {
		t.Fatal(err)
	}
	var shards [][]byte
	for i := range out {
		shards = append(shards, out[i].Bytes())
	}
	return shards
}

func readersOf(shards [][]byte) (from []io.Reader) {
	for _, s := range shards {
		from = append(from, bytes.NewReader(s))
	}
	return from
}

// A stream in several pipes is whole in any order of them.
func TestShards(t *testing.T) {
	for _, n := range []int{2, 3, 8} {
		shards := goldenShards(t, n)
		slices.Reverse(shards)
		src, err := sinks.ReadStream(nil, readersOf(shards)...)
		if err != nil {
			t.Fatal(err)
		}
		checkSource(t, src)
		src.Close()
	}
}

// Without a shard, with one that is cut or changed anywhere, or is another stream's, there is no set.
func TestShardsDamaged(t *testing.T) {
	whole := goldenShards(t, 3)
	refused := func(shards [][]byte, what string, at int) {
		t.Helper()
		if src, err := sinks.ReadStream(nil, readersOf(shards)...); err == nil {
			src.Close()
			t.Errorf("%s at %d was not noticed", what, at)
		}
	}
	with := func(i int, b []byte) [][]byte {
		shards := slices.Clone(whole)
		shards[i] = b
		return shards
	}
	other := goldenShards(t, 3)
	for i, s := range whole {
		refused(slices.Delete(slices.Clone(whole), i, i+1), "a shard left out", i)
		refused(with(i, nil), "a shard without anything", i)
		refused(with(i, whole[(i+1)%3]), "a shard that comes twice", i)
		refused(with(i, other[i]), "a shard of another stream", i)
		refused(with(i, append(bytes.Clone(s), 0)), "a byte more", i)
		for at := 0; at < len(s); at += 1 + len(s)/200 {
			refused(with(i, s[:at]), "cut", at)
			b := bytes.Clone(s)
			b[at] ^= 0x10
			refused(with(i, b), "change", at)
		}
		refused(with(i, s[:len(s)-1]), "cut", len(s)-1)
	}
}

// Several sets can be taken out of the same pipes, one after the other.
func TestExtractShards(t *testing.T) {
	first, second := goldenShards(t, 2), goldenShards(t, 2)
	from := readersOf([][]byte{slices.Concat(first[0], second[0]), slices.Concat(first[1], second[1][:len(second[1])-9])})
	var dirs []string
	extract := func() error {
		dirs = append(dirs, t.TempDir())
		to, err := sinks.NewDir(dirs[len(dirs)-1], sinks.DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		return sinks.Extract(to, from...)
	}
	if err := extract(); err != nil {
		t.Fatal(err)
	}
	checkSource(t, openSet(t, dirs[0]))
	if err := extract(); err == nil || !strings.Contains(err.Error(), "breaks off") {
		t.Errorf("a second set whose end is missing: %v", err)
	}
	if left, err := filepath.Glob(dirs[1] + "/*"); err != nil || len(left) > 0 {
		t.Errorf("it has left %v", left)
	}
	if err := sinks.Extract(nil, strings.NewReader("")); err != io.EOF {
		t.Errorf("of nothing: %v", err)
	}
}
