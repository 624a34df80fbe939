package image

import (
	"fmt"
	"io"
	"iter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

// PageSize is the unit of page maps. Every architecture that is supported has it.
const PageSize = 4096

// Flags of a run in a page map.
const (
	PEParent uint32 = 1 << 0 // unchanged since the parent set, which holds the bytes
	// PEShared is our own (--share-cow): the page is that of the task's parent at the same address, copy-on-write; where the
	// parent's page map has none there, it is all zeros.
	PEShared  uint32 = 1 << 16
	PELazy    uint32 = 1 << 1 // may be loaded after the task goes on
	PEPresent uint32 = 1 << 2 // the bytes are in the pages file
)

// PagemapKind says whose pages a page map lists.
type PagemapKind uint8

const (
	TaskPages  PagemapKind = iota // pagemap-PID.img: virtual addresses of a task
	ShmemPages                    // pagemap-shmem-SHMID.img: offsets in a shared memory object
)

// Kind is the image of such a page map.
func (k PagemapKind) Kind() Kind[*pagemap.PagemapEntry] {
	if k == ShmemPages {
		return PagemapShmem
	}
	return Pagemap
}

// Run is a stretch of pages with equal flags.
type Run struct {
	Addr  uint64 // first byte
	Pages uint64
	Flags uint32 // PEPresent, PELazy, PEParent
}

// End is the address after the last byte.
func (r Run) End() uint64 { return r.Addr + r.Pages*PageSize }

// Bytes is the size of the run.
func (r Run) Bytes() uint64 { return r.Pages * PageSize }

// PagemapReader reads one page map, one run at a time, whatever its size.
type PagemapReader struct {
	PagesID uint32 // which pages file holds the bytes of the runs that are PEPresent, in their order

	dec    *Decoder
	close  io.Closer
	end    uint64
	expand bool    // the pages file comes expanded, however it is stored
	stored storage // of the run that was read last
}

// ReadPagemap opens a page map; fs.ErrNotExist when there is none for this id.
func ReadPagemap(src Source, kind PagemapKind, id uint64) (*PagemapReader, error) {
	k := kind.Kind()
	d, f, err := Open(src, k, id)
	if err != nil {
		return nil, err
	}
	p := &PagemapReader{dec: d, close: f}
	m, err := d.Next()
	if err == io.EOF {
		err = Errorf(d.File(), -1, "there is no head")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	p.PagesID = m.(*pagemap.PagemapHead).GetPagesId()
	if x, ok := src.(*expanded); ok {
		p.expand = true
		x.note(p.PagesID, kind, id)
	}
	return p, nil
}

// Next returns the next run; io.EOF after the last. Runs ascend, do not overlap and end below 2^64.
func (p *PagemapReader) Next() (Run, error) {
	b, err := p.dec.NextBytes()
	if err != nil {
		return Run{}, err
	}
	run, err := parseRun(b, &p.stored)
	if err == nil && run.Addr < p.end {
		err = fmt.Errorf("vaddr %#x is not past the run before, which ends at %#x", run.Addr, p.end)
	}
	if err == nil && !p.expand && !p.stored.plain() {
		err = fmt.Errorf("its pages are compressed, in a set whose inventory does not say so by img_version %d", FormatV1_2)
	}
	if err != nil {
		return Run{}, p.dec.fail(p.dec.Entry(), err)
	}
	p.end = run.End()
	return run, nil
}

// Runs goes over the rest of the runs.
func (p *PagemapReader) Runs() iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		for {
			run, err := p.Next()
			if err == io.EOF || !yield(run, err) || err != nil {
				return
			}
		}
	}
}

// Stored says where the bytes of the run that was read last are in the pages file when those before it end at off, how many they are,
// and whether they are there as they are, one page after the other.
func (p *PagemapReader) Stored(run Run, off int64) (start, n int64, plain bool) {
	if p.stored.aligned {
		off = roundUp(off, PageSize)
	}
	if p.stored.blocks {
		return off, int64(p.stored.total), false
	}
	return off, int64(run.Bytes()), true
}

// Close closes the image.
func (p *PagemapReader) Close() error {
	p.dec.release()
	return p.close.Close()
}
