package sinks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// dirPagemap is a page map in a directory: pagemap-ID.img and pages-N.img.
type dirPagemap struct {
	runs
	enc    *image.Encoder
	maps   Writer
	pages  *os.File
	sync   bool
	parent *parentRuns // nil: no parent

	mu  sync.Mutex
	off int64 // where the next bytes go, which is how many there are
}

// Pagemap opens both files of an object.
func (d *Dir) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	name := kind.Kind().File(id)
	previous, err := d.previous()
	if err != nil {
		return nil, err
	}
	parent, err := openParentRuns(previous, kind, id)
	if err != nil {
		return nil, err
	}
	maps, err := d.Create(name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	pagesID := d.pagesID
	d.pagesID++
	d.mu.Unlock()
	pages, err := d.create(image.PagesFile(pagesID))
	if err != nil {
		return nil, errors.Join(err, maps.Close())
	}
	p := &dirPagemap{
		enc: image.NewEncoder(maps, name, kind.Kind().Type), maps: maps, pages: pages,
		sync: d.opt.Sync, parent: parent,
	}
	p.runs = runs{name: name, emit: p.store}
	if err := p.enc.Entry(&pagemap.PagemapHead{PagesId: &pagesID}); err != nil {
		return nil, errors.Join(err, maps.Close(), pages.Close())
	}
	return p, nil
}

// store writes an entry. What is left to the parent has to be there.
func (p *dirPagemap) store(run image.Run) error {
	if run.Flags&image.PEParent != 0 {
		if err := p.parent.covers(run); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return p.enc.Run(run)
}

func (p *dirPagemap) Add(vaddr, pages uint64, flags uint32) error { return p.add(vaddr, pages, flags) }

// addPacked adds a run whose bytes are there already, in compressed blocks.
func (p *dirPagemap) addPacked(run image.Run, blocks image.Blocks) error {
	if err := p.flush(); err != nil {
		return err
	}
	if run.Addr%image.PageSize != 0 || run.End() < run.Addr || run.Addr < p.last.Addr {
		return fmt.Errorf("%s: %d pages at %#x are no pages, or come too late", p.name, run.Pages, run.Addr)
	}
	p.last = image.Run{Addr: run.End()}
	for _, size := range blocks.Sizes {
		p.present += int64(size)
	}
	return p.enc.PackedRun(run, blocks)
}

func (p *dirPagemap) HasParent() (bool, error) { return p.parent != nil, nil }

func (p *dirPagemap) Direct() (*os.File, int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pages, p.off, true
}

func (p *dirPagemap) Reserve(n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	off := p.off
	p.off += n
	return off
}

func (p *dirPagemap) Advance(n int64) { p.Reserve(n) }

func (p *dirPagemap) Write(b []byte) (int, error) {
	return p.pages.WriteAt(b, p.Reserve(int64(len(b))))
}

func (p *dirPagemap) Close() error {
	err := errors.Join(p.finish(p.off), p.enc.Flush(), p.maps.Close())
	if p.parent != nil {
		p.parent.Close()
	}
	return errors.Join(err, (&dirFile{p.pages, p.sync}).Close())
}

// parentRuns walks the page map of the parent along with the new one, so that no page is said to be in the
// parent that is not.
type parentRuns struct {
	*image.PagemapReader
	run image.Run
}

// openParentRuns opens the object's page map in the parent; nil when it has none.
func openParentRuns(src image.Source, kind image.PagemapKind, id uint64) (*parentRuns, error) {
	if src == nil {
		return nil, nil
	}
	r, err := image.ReadPagemap(src, kind, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &parentRuns{PagemapReader: r}, nil
}

// covers checks that every page of run is in the parent's page map. Runs come in ascending order.
func (p *parentRuns) covers(run image.Run) error {
	if p == nil {
		return fmt.Errorf("pages at %#x are said to be in the parent, which has none of this object", run.Addr)
	}
	for at := run.Addr; at < run.End(); {
		for p.run.End() <= at {
			next, err := p.Next()
			if err == io.EOF {
				return fmt.Errorf("page %#x is not in the parent", at)
			}
			if err != nil {
				return err
			}
			p.run = next
		}
		if p.run.Addr > at {
			return fmt.Errorf("page %#x is not in the parent", at)
		}
		at = p.run.End()
	}
	return nil
}
