package sinks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// Dedup takes out of the sets that set builds on the pages that it has itself: nobody will read them there any more.
// The files keep their size and get holes (FALLOC_FL_PUNCH_HOLE). It returns the number of bytes given back.
//
// What is compressed stays: a block has pages of both sorts.
//
// The older sets cannot be restored by themselves afterwards, so it is for a set that is complete: a dump with
// --auto-dedup does it after its Commit and not page by page, or a dump that fails would take the older sets with it.
func Dedup(set *image.Dir) (int64, error) {
	if inv, err := image.ReadInventory(set); err == nil && inv.GetImgVersion() == image.FormatShared {
		return 0, fmt.Errorf("%s has pages that tasks share (--share-cow): who needs which page of an older set cannot be told", set)
	}
	return eachObject(set, dedupObject)
}

// Empty takes all pages out of a set and of those it builds on: they have been restored, and take memory twice where images
// are in memory. The set cannot be restored again. It returns the number of bytes given back.
func Empty(set *image.Dir) (int64, error) {
	if err := set.Remove(SumsName); err != nil { // they are no more true
		return 0, err
	}
	freed, err := eachObject(set, emptyObject)
	if err != nil {
		return freed, err
	}
	up, err := set.Parent()
	if err != nil || up == nil {
		return freed, err
	}
	defer up.Close()
	n, err := Empty(up.(*image.Dir))
	return freed + n, err
}

// object is a page map of a set, and the file with its pages.
type object struct {
	kind  image.PagemapKind
	id    uint64
	pages uint32
}

// objects lists all of a set.
func objects(set *image.Dir) ([]object, error) {
	names, err := set.Names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var list []object
	for _, name := range names {
		for _, kind := range []image.PagemapKind{image.TaskPages, image.ShmemPages} {
			o := object{kind: kind}
			if n, _ := fmt.Sscanf(name, kind.Kind().Pattern, &o.id); n != 1 || name != kind.Kind().File(o.id) {
				continue
			}
			m, err := image.ReadPagemap(set, kind, o.id)
			if err != nil {
				return nil, err
			}
			m.Close()
			o.pages = m.PagesID
			list = append(list, o)
		}
	}
	return list, nil
}

// eachObject calls do for each page map of a set, and adds up what it gives back.
func eachObject(set *image.Dir, do func(*image.Dir, object) (int64, error)) (freed int64, err error) {
	list, err := objects(set)
	if err != nil {
		return 0, err
	}
	for _, o := range list {
		n, err := do(set, o)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// emptyObject makes one hole of a pages file.
func emptyObject(set *image.Dir, o object) (int64, error) {
	pages, err := set.OpenPagesToPunch(o.pages)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // it had none
	}
	if err != nil {
		return 0, err
	}
	defer pages.Close()
	if pages.Size == 0 {
		return 0, nil
	}
	return pages.Size, punchHole(pages, 0, pages.Size)
}

func punchHole(pages *image.Pages, off, n int64) error {
	if err := unix.Fallocate(int(pages.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return &fs.PathError{Op: "punch hole", Path: pages.Name(), Err: err}
	}
	return nil
}

// dedupObject does it for one object, in all generations that have it.
func dedupObject(set *image.Dir, o object) (int64, error) {
	newest, err := image.ReadPagemap(image.Packed(set), o.kind, o.id)
	if err != nil {
		return 0, err
	}
	defer newest.Close()
	older, err := openGenerations(set, o.kind, o.id)
	defer func() {
		for _, g := range older {
			g.close()
		}
	}()
	if err != nil {
		return 0, err
	}
	var freed int64
	for run, err := range newest.Runs() {
		if err != nil {
			return freed, err
		}
		if run.Flags&image.PEPresent == 0 {
			continue
		}
		for _, g := range older {
			n, err := g.punch(run)
			freed += n
			if err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// generation is an object in one of the older sets. Its runs are walked along with those of the newest set.
type generation struct {
	maps  *image.PagemapReader
	pages *image.Pages
	run   image.Run
	off   int64 // of run in the pages file
	next  int64 // where the one after it may begin
	plain bool  // its pages are there as they are
	end   bool
}

// openGenerations opens an object in every set of the chain that has it.
func openGenerations(set *image.Dir, kind image.PagemapKind, id uint64) ([]*generation, error) {
	var all []*generation
	for below := set; ; {
		src, err := below.Parent()
		if below != set {
			below.Close()
		}
		if err != nil || src == nil {
			return all, err
		}
		below = src.(*image.Dir)
		maps, err := image.ReadPagemap(image.Packed(below), kind, id)
		if errors.Is(err, fs.ErrNotExist) {
			// Whoever reads the chain stops where an object is missing.
			below.Close()
			return all, nil
		}
		if err != nil {
			below.Close()
			return all, err
		}
		g := &generation{maps: maps}
		all = append(all, g)
		if err := below.Remove(SumsName); err != nil { // they are no more true
			return all, err
		}
		if g.pages, err = below.OpenPagesToPunch(maps.PagesID); err != nil {
			below.Close()
			return all, err
		}
	}
}

func (g *generation) close() {
	g.maps.Close()
	if g.pages != nil {
		g.pages.Close()
	}
}

// punch makes a hole of what this generation has of run. Runs come in ascending order.
func (g *generation) punch(run image.Run) (int64, error) {
	var freed int64
	for {
		if g.run.End() > run.Addr {
			from, to := max(run.Addr, g.run.Addr), min(run.End(), g.run.End())
			if from < to && g.run.Flags&image.PEPresent != 0 && g.plain {
				n := int64(to - from)
				off := g.off + int64(from-g.run.Addr)
				if err := punchHole(g.pages, off, n); err != nil {
					return freed, err
				}
				freed += n
			}
			if g.run.End() >= run.End() {
				return freed, nil
			}
		}
		if g.end {
			return freed, nil
		}
		next, err := g.maps.Next()
		if err == io.EOF {
			g.end = true
			return freed, nil
		}
		if err != nil {
			return freed, err
		}
		g.run = next
		if next.Flags&image.PEPresent != 0 {
			var n int64
			g.off, n, g.plain = g.maps.Stored(next, g.next)
			g.next = g.off + n
		}
	}
}
