package image_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"cryo/internal/image"

	"google.golang.org/protobuf/encoding/protowire"
)

// alteration changes a set in memory; victim is one of its files.
type alteration struct {
	name  string
	apply func(r *rand.Rand, set memSource, victim string)
}

var alterations = []alteration{
	{"flip a bit", func(r *rand.Rand, set memSource, v string) {
		set[v][r.IntN(len(set[v]))] ^= 1 << r.IntN(8)
	}},
	{"overwrite eight bytes", func(r *rand.Rand, set memSource, v string) {
		b := set[v]
		binary.LittleEndian.PutUint64(b[r.IntN(max(1, len(b)-8)):][:min(8, len(b))], r.Uint64())
	}},
	{"cut", func(r *rand.Rand, set memSource, v string) { set[v] = set[v][:r.IntN(len(set[v]))] }},
	{"append noise", func(r *rand.Rand, set memSource, v string) {
		for range 1 + r.IntN(100) {
			set[v] = append(set[v], byte(r.Uint32()))
		}
	}},
	{"remove", func(r *rand.Rand, set memSource, v string) { delete(set, v) }},
	{"empty", func(r *rand.Rand, set memSource, v string) { set[v] = nil }},
	{"exchange two files", func(r *rand.Rand, set memSource, v string) {
		other := set.names()[r.IntN(len(set))]
		set[v], set[other] = set[other], set[v]
	}},
	{"repeat the entries", func(r *rand.Rand, set memSource, v string) {
		if len(set[v]) > 8 {
			set[v] = append(set[v], set[v][8:]...)
		}
	}},
	{"huge size of an entry", func(r *rand.Rand, set memSource, v string) {
		if len(set[v]) > 12 {
			binary.LittleEndian.PutUint32(set[v][8:], r.Uint32()|1<<24)
		}
	}},
	{"huge field", func(r *rand.Rand, set memSource, v string) {
		// An extra field of a number the message may know, with the largest value there is.
		entry := protowire.AppendVarint(protowire.AppendTag(nil, protowire.Number(1+r.IntN(20)), protowire.VarintType), ^uint64(0))
		b := set[v]
		if len(b) < 12 {
			return
		}
		size := binary.LittleEndian.Uint32(b[8:])
		if int64(size) > int64(len(b)-12) {
			return
		}
		end := 12 + int(size)
		set[v] = slices.Concat(b[:8], binary.LittleEndian.AppendUint32(nil, size+uint32(len(entry))), b[12:end], entry, b[end:])
	}},
}

func (m memSource) names() []string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func loadSet(t *testing.T, dir string) memSource {
	t.Helper()
	set := memSource{}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		set[e.Name()] = b
	}
	return set
}

// readWhole reads a set as a restore does: the inventory, the tree, and what the tree names.
func readWhole(src image.Source) error {
	if _, err := image.ReadInventory(src); err != nil {
		return err
	}
	tree, err := image.ReadAll(src, image.Pstree, 0)
	if err != nil {
		return err
	}
	for _, task := range tree {
		pid := uint64(task.GetPid())
		_, err := image.Read(src, image.Core, pid)
		_, err2 := image.Read(src, image.MM, pid)
		_, err3 := image.Read(src, image.Fs, pid)
		ids, err4 := image.Read(src, image.IDs, pid)
		if err := errors.Join(err, err2, err3, err4); err != nil {
			return err
		}
		if _, err := image.ReadAll(src, image.Fdinfo, uint64(ids.GetFilesId())); err != nil {
			return err
		}
		if err := readRuns(src, image.TaskPages, pid); err != nil {
			return err
		}
	}
	memfds, err := image.ReadOptional(src, image.MemfdInode, 0)
	if err != nil {
		return err
	}
	for _, m := range memfds {
		if err := readRuns(src, image.ShmemPages, uint64(m.GetShmid())); err != nil {
			return err
		}
	}
	_, err = image.ReadOptional(src, image.Files, 0)
	_, err2 := image.ReadOptional(src, image.RemapFpath, 0)
	_, err3 := image.ReadOptional(src, image.Seccomp, 0)
	_, err4 := image.ReadOptional(src, image.Timens, 0)
	return errors.Join(err, err2, err3, err4, readPayloads(src, "pipes-data.img"), readPayloads(src, "sk-queues.img"), readPayloads(src, "ghost-file-1.img"))
}

func readRuns(src image.Source, kind image.PagemapKind, id uint64) error {
	p, err := image.ReadPagemap(src, kind, id)
	if err != nil {
		return err
	}
	defer p.Close()
	for _, err := range p.Runs() {
		if err != nil {
			return err
		}
	}
	return nil
}

func readPayloads(src image.Source, name string) error {
	f, err := src.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	_, err = recode(b, name)
	return err
}

// 300 sets, each with one thing altered: reading ends with a set or one error that names an image, without a panic
// and without memory the bytes do not account for.
func TestAlteredSets(t *testing.T) {
	pristine := loadSet(t, filepath.Join(golden, "golden"))
	if err := readWhole(pristine); err != nil {
		t.Fatal(err)
	}
	refused := map[string]int{}
	for n := range 300 {
		r := rand.New(rand.NewPCG(uint64(n), 1))
		a := alterations[n%len(alterations)]
		set := memSource{}
		var images []string
		for name, b := range pristine {
			set[name] = bytes.Clone(b)
			if !strings.HasPrefix(name, "pages-") && name != "stats-dump" {
				images = append(images, name)
			}
		}
		slices.Sort(images)
		victim := images[r.IntN(len(images))]
		a.apply(r, set, victim)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := readWhole(set)
		runtime.ReadMemStats(&after)
		what := fmt.Sprintf("set %d: %s of %s", n, a.name, victim)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
			t.Errorf("%s: %d bytes were allocated", what, grown)
		}
		if err == nil {
			continue
		}
		refused[a.name]++
		if !strings.Contains(err.Error(), ".img") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the error names no image: %v", what, err)
		}
	}
	t.Logf("refused, of 30 each: %v", refused)
}
