package restorers

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// PageFill writes the pages of one address space.
type PageFill struct {
	Source image.Source
	Kind   image.PagemapKind
	ID     uint64       // of the page map
	Base   uint64       // pid of the task whose pages are inherited; 0 without one
	Known  [2]*Pagemap  // the page map, and that of Base, where they are known
	Shared *SharedPages // where the pages of Base are read from; nil: anew
	PID    int          // task to write to, as the tool sees it
	Parts  []Part       // where pages may be; ascending
	Uffd   *Uffd        // for parts that are Copied; nil without any
	Owners Owners       // who shares pages with whom
	Lazy   bool         // pages that may come late are left out
	Last   bool         // nobody reads these pages afterwards: those of a stream are given back

	// Results.
	Late  []Range // where such pages are: one range a part at most, from the first to the last of them
	Drop  []Range // inherited pages the task is not to have
	Pages uint64  // pages written
	Same  uint64  // pages inherited and found equal
}

// Part is a range of a task's memory that takes pages.
type Part struct {
	Range
	Shift  uint64 // what to add to an address of the page map to have the one in the task
	Kept   bool   // holds the pages of Base
	Forced bool   // is not writable: to be written through /proc/PID/mem
	Ignore bool   // pages there are of no use (vdso)
	Copied bool   // fresh and registered with the fill's Uffd
}

// inherits says whether the pages of the task that forked are read again, to be compared.
func inherits(parts []Part) bool {
	return slices.ContainsFunc(parts, func(p Part) bool { return p.Kept })
}

// PartsOf lists where the private pages of a task go.
func PartsOf(c *Change, special []*Area) []Part {
	var parts []Part
	for _, a := range c.Map {
		if a.Private() {
			parts = append(parts, Part{Range: Range{a.Start, a.End}})
		}
	}
	for _, k := range c.Kept {
		if k.Private() {
			parts = append(parts, Part{Range: Range{k.Start, k.End}, Kept: true, Forced: k.Had&unix.PROT_WRITE == 0})
		}
	}
	for _, a := range special {
		parts = append(parts, Part{Range: Range{a.Start, a.End}, Ignore: true})
	}
	slices.SortFunc(parts, func(a, b Part) int { return int(min(max(int64(a.Start-b.Start), -1), 1)) })
	return parts
}

// Run goes over page map and parts and writes. Pages outside of all parts are an error.
func (f *PageFill) Run(ctx context.Context) error {
	own, err := openKnown(f.Source, f.Kind, f.ID, f.Known[0])
	if err != nil {
		return err
	}
	defer own.Close()
	base := &pageStream{done: true}
	if f.Base != 0 && inherits(f.Parts) {
		if base, err = openKnown(f.Source, f.Kind, f.Base, f.Known[1]); err != nil {
			return err
		}
		base.shared = f.Shared
		defer base.Close()
	}
	own.owners, base.owners = f.Owners, f.Owners
	if f.Lazy {
		own.late, base.late = f.late, func(Range) {}
	}
	w := newPageWriter(ctx, f.PID, f.Uffd)
	w.last = f.Last
	err = f.walk(ctx, own, base, w)
	if werr := w.close(); werr != nil {
		err = werr
	}
	if f.Last {
		own.release()
	}
	f.Pages = w.pages
	return err
}

// walk goes over the parts.
func (f *PageFill) walk(ctx context.Context, own, base *pageStream, w *pageWriter) error {
	at := uint64(0)
	for i := range f.Parts {
		p := &f.Parts[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.outside(own, at, p.Start); err != nil {
			return err
		}
		at = p.End
		if p.Ignore {
			continue
		}
		if err := f.part(own, base, p, w); err != nil {
			return err
		}
	}
	return f.outside(own, at, ^uint64(0))
}

// outside refuses pages between two parts.
func (f *PageFill) outside(own *pageStream, from, to uint64) error {
	r, ok, err := own.from(from)
	if err == nil && ok && r.Start < to && from < to {
		err = fmt.Errorf("image %s: pages at %x are in no private mapping of the task", own.name, r.Start)
	}
	return err
}

func (f *PageFill) part(own, base *pageStream, p *Part, w *pageWriter) error {
	for at := p.Start; at < p.End; {
		o, have, err := own.from(at)
		if err != nil {
			return err
		}
		if !have || o.Start >= p.End {
			o.Start, o.End = p.End, p.End
		}
		b := pageRun{Start: p.End, End: p.End}
		if p.Kept {
			r, there, err := base.from(at)
			if err != nil {
				return err
			}
			if there && r.Start < p.End {
				b = r
			}
		}
		next := min(o.End, b.End, p.End)
		switch {
		case o.Start > at && b.Start > at:
			next = min(o.Start, b.Start)
		case o.Start > at: // only inherited
			next = min(o.Start, b.End, p.End)
			f.drop(at, next)
		case b.Start > at: // only its own
			next = min(o.End, b.Start, p.End)
			if err = w.put(p, o, at, next); err != nil {
				return err
			}
		default:
			if next, err = f.compare(p, o, b, next, w); err != nil {
				return err
			}
		}
		at = next
	}
	return nil
}

// late notes where pages come late. Runs ascend.
func (f *PageFill) late(r Range) {
	for i := sort.Search(len(f.Parts), func(i int) bool { return f.Parts[i].End > r.Start }); i < len(f.Parts) && f.Parts[i].Start < r.End; i++ {
		p := &f.Parts[i]
		here := Range{max(r.Start, p.Start), min(r.End, p.End)}
		if n := len(f.Late); n > 0 && f.Late[n-1].Start >= p.Start {
			f.Late[n-1].End = here.End
			continue
		}
		f.Late = append(f.Late, here)
	}
}

func (f *PageFill) drop(start, end uint64) {
	if n := len(f.Drop); n > 0 && f.Drop[n-1].End == start {
		f.Drop[n-1].End = end
		return
	}
	f.Drop = append(f.Drop, Range{start, end})
}

// compare writes those pages of o that differ from b; both begin at the same address. It returns how far it came.
func (f *PageFill) compare(p *Part, o, b pageRun, end uint64, w *pageWriter) (uint64, error) {
	at := o.Start
	if o.same(b) {
		f.Same += (end - at) / image.PageSize
		return end, nil
	}
	theirs, err := b.file.bytes(b.off, end-at)
	if err != nil {
		return 0, err
	}
	ours, err := o.file.bytes(o.off, uint64(len(theirs)))
	if err != nil {
		return 0, err
	}
	n := uint64(len(ours))
	if bytes.Equal(ours, theirs[:n]) {
		f.Same += n / image.PageSize
		return at + n, nil
	}
	for i := uint64(0); i < n; i += image.PageSize {
		if bytes.Equal(ours[i:i+image.PageSize], theirs[i:i+image.PageSize]) {
			f.Same++
			continue
		}
		page := pageRun{at + i, at + i + image.PageSize, o.file, o.off + int64(i)}
		if err := w.put(p, page, page.Start, page.End); err != nil {
			return 0, err
		}
	}
	return at + n, nil
}
